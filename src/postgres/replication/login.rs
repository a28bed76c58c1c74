//! From nothing to a walsender that is ready for a command: TCP, TLS, start-up packet, SCRAM.

use std::io::ErrorKind;
use std::net::SocketAddr;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message, ParameterStatusBody};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::error::{self, UpstreamError};
use super::wire::{Duplex, Wire};
use super::{EXCHANGE_LIMIT_MESSAGES, UpstreamAccess};
use crate::postgres::Login;
use crate::postgres::tls::{self, ClientTls};

/// A trigger on login (PostgreSQL 17) may write, and must not wait for those who are still logging in.
const DATABASE_OPTIONS: &str = "-c synchronous_commit=local -c default_transaction_read_only=off";

/// A walsender ready for a command, and what it said of itself.
pub(super) struct Welcome {
    pub(super) wire: Wire,
    pub(super) in_recovery: Option<bool>,
    pub(super) server_version: Option<String>,
}

/// Has no time limit of its own. Without a `database` the walsender takes replication commands alone.
pub(super) async fn open(
    access: &UpstreamAccess<'_>,
    database: Option<&str>,
) -> Result<Welcome, UpstreamError> {
    let mut wire = Wire::new(stream(access).await?);
    start_up(&mut wire, access, database)?;
    wire.send().await?;
    authenticate(&mut wire, access.login).await?;
    wire.logged_in();
    welcome(wire).await
}

async fn stream(access: &UpstreamAccess<'_>) -> Result<Box<dyn Duplex>, UpstreamError> {
    let address = SocketAddr::new(access.upstream.address, access.upstream.port);
    let unreachable = |source: std::io::Error| match source.kind() {
        ErrorKind::ConnectionRefused => UpstreamError::Refused { address, source },
        _ => UpstreamError::Unreachable { address, source },
    };
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    match access.tls {
        Some(tls) => encrypt(stream, tls, &access.upstream.host).await,
        None => Ok(Box::new(stream)),
    }
}

/// `SSLRequest`; its one-byte answer is read alone, so that nothing sent in clear counts as encrypted.
async fn encrypt(
    mut stream: TcpStream,
    tls: &ClientTls,
    host: &str,
) -> Result<Box<dyn Duplex>, UpstreamError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let answer = async {
        stream.write_all(&request).await?;
        stream.read_u8().await
    };
    match answer.await {
        Ok(b'S') => {}
        Ok(b'N') => {
            return Err(UpstreamError::TlsUnavailable {
                host: host.to_owned(),
            });
        }
        Ok(_) => return Err(UpstreamError::unexpected_message()),
        Err(_) => return Err(UpstreamError::Closed),
    }
    let failed = |source| UpstreamError::Tls {
        host: host.to_owned(),
        source,
    };
    let name = tls::server_name(host).map_err(|error| failed(std::io::Error::other(error)))?;
    let encrypted = tls.connector().connect(name, stream).await.map_err(failed)?;
    Ok(Box::new(encrypted))
}

fn start_up(
    wire: &mut Wire,
    access: &UpstreamAccess<'_>,
    database: Option<&str>,
) -> Result<(), UpstreamError> {
    let replication = if database.is_some() { "database" } else { "true" };
    let parameters = [
        ("user", access.login.user.as_str()),
        ("replication", replication),
        ("application_name", access.application_name),
        ("client_encoding", "UTF8"),
    ];
    let parameters = parameters
        .into_iter()
        .chain(database.map(|name| ("database", name)))
        .chain(database.map(|_| ("options", DATABASE_OPTIONS)));
    frontend::startup_message(parameters, wire.outgoing()).map_err(|error| UpstreamError::protocol(&error))
}

/// Either no password is wanted, or SCRAM is run to its end, by which the server also proves itself.
async fn authenticate(wire: &mut Wire, login: &Login) -> Result<(), UpstreamError> {
    let mechanisms = match wire.receive().await? {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationSasl(body) => body,
        Message::ErrorResponse(body) => return Err(error::reported(&body)),
        message => return Err(refused_method(&message)),
    };
    if !offers_scram(&mechanisms)? {
        return Err(UpstreamError::AuthenticationMethod {
            method: "another SASL",
        });
    }
    let password = login.password.expose().as_bytes();
    let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
    let invalid = |error: std::io::Error| UpstreamError::protocol(&error);

    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), wire.outgoing()).map_err(invalid)?;
    wire.send().await?;
    let Message::AuthenticationSaslContinue(body) = expect_no_error(wire).await? else {
        return Err(UpstreamError::unexpected_message());
    };
    scram.update(body.data()).map_err(invalid)?;
    frontend::sasl_response(scram.message(), wire.outgoing()).map_err(invalid)?;
    wire.send().await?;
    let Message::AuthenticationSaslFinal(body) = expect_no_error(wire).await? else {
        return Err(UpstreamError::unexpected_message());
    };
    scram.finish(body.data()).map_err(invalid)?;
    match expect_no_error(wire).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(UpstreamError::unexpected_message()),
    }
}

fn offers_scram(body: &AuthenticationSaslBody) -> Result<bool, UpstreamError> {
    body.mechanisms()
        .any(|mechanism| Ok(mechanism == SCRAM_SHA_256))
        .map_err(|error| UpstreamError::protocol(&error))
}

fn refused_method(message: &Message) -> UpstreamError {
    let method = match message {
        Message::AuthenticationCleartextPassword => "clear-text password",
        Message::AuthenticationMd5Password(_) => "md5",
        Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
            "GSSAPI"
        }
        _ => return UpstreamError::unexpected_message(),
    };
    UpstreamError::AuthenticationMethod { method }
}

async fn expect_no_error(wire: &mut Wire) -> Result<Message, UpstreamError> {
    match wire.receive().await? {
        Message::ErrorResponse(body) => Err(error::reported(&body)),
        message => Ok(message),
    }
}

/// Parameters until the server is ready; refusals that come after the login (rights, connections) come here.
async fn welcome(mut wire: Wire) -> Result<Welcome, UpstreamError> {
    let (mut in_recovery, mut server_version) = (None, None);
    for _ in 0..EXCHANGE_LIMIT_MESSAGES {
        match expect_no_error(&mut wire).await? {
            Message::ParameterStatus(body) => match parameter(&body)? {
                ("in_hot_standby", value) => in_recovery = Some(value == "on"),
                ("server_version", value) => server_version = Some(value.to_owned()),
                _ => {}
            },
            Message::ReadyForQuery(_) => {
                return Ok(Welcome {
                    wire,
                    in_recovery,
                    server_version,
                });
            }
            Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
            _ => return Err(UpstreamError::unexpected_message()),
        }
    }
    Err(UpstreamError::unexpected_message())
}

fn parameter(body: &ParameterStatusBody) -> Result<(&str, &str), UpstreamError> {
    let invalid = |error: std::io::Error| UpstreamError::protocol(&error);
    Ok((body.name().map_err(invalid)?, body.value().map_err(invalid)?))
}
