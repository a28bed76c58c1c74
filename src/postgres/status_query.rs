//! The agent's one query to its server, for PostgreSQL 15 to 18, on a primary and on a standby.
//!
//! What cannot change while a connection lives is asked once for each connection. Never writes.

use serde::de::DeserializeOwned;
use tokio_postgres::types::{FromSql, PgLsn, Type};
use tokio_postgres::{Client, Row, Statement};

use super::query::QueryError;
use crate::core::data_directory::SystemIdentifier;
use crate::core::status::ServerStatus;
use crate::core::wal::{Lsn, TimelineId};
use crate::core::wal_file::WalFile;

/// What stays as it is as long as the postmaster lives.
pub(super) struct ServerFacts {
    server_version: u32,
    system_identifier: SystemIdentifier,
    postmaster_start_time: String,
    wal_segment_size_bytes: u64,
}

/// The status, but for the judgement on the replication role's password.
pub(super) struct Answer {
    pub(super) status: ServerStatus,
    /// `rolpassword` of the replication role, if that role may log in and replicate.
    pub(super) verifier: Option<String>,
    pub(super) heard: Option<Heard>,
}

/// The newest message that the WAL receiver has had, by the server's wall clock, which may be set while nothing comes.
#[derive(Clone, Copy)]
pub(super) struct Heard {
    /// Two that differ are two messages, and say no more.
    stamp: i64,
    age_ms: i64,
}

/// For how long nothing has come, by this process' own clock.
#[derive(Default)]
pub(super) struct Silence {
    last: Option<(i64, u64)>,
    looked_at_ms: u64,
}

impl Silence {
    /// Milliseconds since the newest message, which came after the look before the one that saw it first; `now_ms` is
    /// `CLOCK_BOOTTIME`'s.
    pub(super) fn since(&mut self, heard: Option<Heard>, now_ms: u64) -> Option<u64> {
        let looked_at_ms = std::mem::replace(&mut self.looked_at_ms, now_ms);
        let same = self
            .last
            .filter(|(stamp, _)| heard.is_some_and(|heard| heard.stamp == *stamp));
        let came = |heard: Heard| {
            let age_ms = heard.age_ms.max(0).cast_unsigned();
            let earliest_ms = if looked_at_ms == 0 { now_ms } else { looked_at_ms };
            (heard.stamp, now_ms.saturating_sub(age_ms).max(earliest_ms))
        };
        self.last = same.or(heard.map(came));
        self.last.map(|(_, at_ms)| now_ms.saturating_sub(at_ms))
    }
}

const FACTS: &str = "
SELECT current_setting('server_version_num')::int AS server_version,
       (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       pg_postmaster_start_time()::text AS postmaster_start_time,
       pg_size_bytes(current_setting('wal_segment_size')) AS wal_segment_size_bytes";

/// `$1`: list `pg_wal`; `$2`: name of the replication role.
///
/// `OFFSET 0` keeps `pg_is_in_recovery()` from being evaluated twice: a promotion in between would raise an
/// error. The receiver's timeline is that of the last byte received; without a receiver the newest timeline
/// that the control file or a file name in `pg_wal` tells of is taken. `pg_last_wal_receive_lsn()` is null
/// before the first streaming, and starts at a segment's beginning, so the replay position may be further.
/// `pg_stat_wal_receiver` does not show a receiver that is still connecting; the startup process waits for it in `RecoveryWalStream`.
const STATUS: &str = "
SELECT in_recovery,
       CASE WHEN in_recovery THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_flush_lsn() END AS flush_lsn,
       CASE WHEN in_recovery THEN pg_last_wal_replay_lsn() END AS replay_lsn,
       CASE WHEN NOT in_recovery THEN left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) END AS primary_timeline,
       CASE WHEN in_recovery AND receiver.received_tli IS NULL THEN greatest(
            (SELECT timeline_id FROM pg_control_checkpoint()),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery())) END AS control_timeline,
       receiver.received_tli AS receiver_timeline,
       coalesce(receiver.status = 'streaming', false) AS receiver_streaming,
       receiver.status IS NOT NULL OR EXISTS (
            SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS receiver_present,
       (extract(epoch FROM receiver.last_msg_receipt_time) * 1000000)::bigint AS receiver_heard,
       (extract(epoch FROM clock_timestamp() - receiver.last_msg_receipt_time) * 1000)::bigint AS receiver_age_ms,
       CASE WHEN in_recovery AND receiver.status IS NULL THEN
            (SELECT bool_or(wait_event = 'RecoveryRetrieveRetryInterval')
             FROM pg_stat_activity WHERE backend_type = 'startup') END AS replay_waiting,
       current_setting('synchronous_standby_names') AS synchronous_standby_names,
       receiver.latest_end_lsn AS upstream_lsn,
       CASE WHEN in_recovery THEN
            (extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::bigint
            END AS replay_age_ms,
       CASE WHEN NOT in_recovery THEN
            (SELECT json_agg(sender)::text FROM (
                SELECT application_name, client_addr, state, sent_lsn, flush_lsn, replay_lsn, sync_state,
                       sync_priority, coalesce(usename, '') AS usename, pid
                FROM pg_stat_replication) sender) END AS replication,
       (SELECT json_agg(slot)::text FROM (
            SELECT slot_name, active, restart_lsn, coalesce(wal_status = 'lost', false) AS lost,
                   safe_wal_size AS safe_wal_size_bytes
            FROM pg_replication_slots
            WHERE slot_type = 'physical' AND NOT temporary AND starts_with(slot_name, 'podgres_')) slot) AS slots,
       CASE WHEN in_recovery AND current_setting('sync_replication_slots', true) = 'on' THEN
            (SELECT array_agg(slot_name::text ORDER BY slot_name) FROM pg_replication_slots logical
             WHERE slot_type = 'logical' AND NOT temporary AND NOT active
                AND (to_jsonb(logical) ->> 'failover')::boolean
                AND NOT (to_jsonb(logical) ->> 'synced')::boolean) END AS superseded_slots,
       CASE WHEN $1 OR (in_recovery AND receiver.received_tli IS NULL) THEN
            (SELECT array_agg(name) FROM (
                SELECT min(name COLLATE \"C\") AS name FROM pg_ls_waldir()
                WHERE name ~ '^[0-9A-F]{24}$' GROUP BY left(name, 8)) oldest) END AS oldest_segments,
       CASE WHEN NOT in_recovery AND current_setting('archive_mode') <> 'off' THEN
            (SELECT json_build_object('archived_files', archived_count, 'failed_attempts', failed_count,
                    'waiting_files', waiting.files, 'waiting_ms', waiting.ms)::text
             FROM pg_stat_archiver, (
                SELECT count(*) AS files, coalesce((extract(epoch FROM
                       clock_timestamp() - min(modification)) * 1000)::bigint, 0) AS ms
                FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') waiting) END AS archive,
       (SELECT rolpassword FROM pg_authid
        WHERE rolname = $2::text::name AND rolcanlogin AND rolreplication) AS verifier
FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) server
LEFT JOIN LATERAL (
    SELECT status, received_tli, latest_end_lsn, last_msg_receipt_time FROM pg_stat_wal_receiver WHERE in_recovery) receiver ON true";

/// Asks for the facts and prepares the status query.
pub(super) async fn prepare(client: &Client) -> Result<(ServerFacts, Statement), QueryError> {
    let row = client.query_one(FACTS, &[]).await?;
    let facts = ServerFacts {
        server_version: unsigned(get::<i32>(&row, "server_version")?)?,
        system_identifier: SystemIdentifier(get::<i64>(&row, "system_identifier")?.cast_unsigned()),
        postmaster_start_time: get(&row, "postmaster_start_time")?,
        wal_segment_size_bytes: unsigned(get::<i64>(&row, "wal_segment_size_bytes")?)?,
    };
    let status = client.prepare_typed(STATUS, &[Type::BOOL, Type::TEXT]).await?;
    Ok((facts, status))
}

/// Reads the one row of the status query.
pub(super) fn decode(row: &Row, facts: &ServerFacts) -> Result<Answer, QueryError> {
    let in_recovery: bool = get(row, "in_recovery")?;
    let segments: Vec<WalFile> = get::<Option<Vec<String>>>(row, "oldest_segments")?
        .unwrap_or_default()
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    let timeline = timeline(row, &segments)?;
    let flush_lsn = lsn(row, "flush_lsn")?.unwrap_or_default();
    let mut slots: Vec<crate::core::status::SlotStatus> = rows(row, "slots")?;
    slots.sort_by(|one, other| one.slot_name.cmp(&other.slot_name));
    let status = ServerStatus {
        server_version: facts.server_version,
        system_identifier: facts.system_identifier,
        timeline,
        in_recovery,
        receiver_streaming: get(row, "receiver_streaming")?,
        flush_lsn,
        replay_lsn: lsn(row, "replay_lsn")?.unwrap_or(flush_lsn),
        upstream_lsn: lsn(row, "upstream_lsn")?,
        replay_age_ms: get::<Option<i64>>(row, "replay_age_ms")?.map(|age| age.max(0).cast_unsigned()),
        postmaster_start_time: facts.postmaster_start_time.clone(),
        replication: rows(row, "replication")?,
        slots,
        oldest_wal_lsn: oldest(&segments, timeline, facts.wal_segment_size_bytes),
        wal_segment_size_bytes: facts.wal_segment_size_bytes,
        replication_role: false,
        receiver_present: get(row, "receiver_present")?,
        receiver_silent_ms: None,
        replay_waiting: get::<Option<bool>>(row, "replay_waiting")?.unwrap_or(false),
        superseded_slots: get::<Option<Vec<String>>>(row, "superseded_slots")?.unwrap_or_default(),
        synchronous_standby_names: get(row, "synchronous_standby_names")?,
        archive: get::<Option<&str>>(row, "archive")?.and_then(|text| serde_json::from_str(text).ok()),
    };
    let stamp: Option<i64> = get(row, "receiver_heard")?;
    let age_ms: Option<i64> = get(row, "receiver_age_ms")?;
    Ok(Answer {
        status,
        verifier: get(row, "verifier")?,
        heard: stamp.zip(age_ms).map(|(stamp, age_ms)| Heard { stamp, age_ms }),
    })
}

/// See [`STATUS`] for where a server's timeline is read.
fn timeline(row: &Row, segments: &[WalFile]) -> Result<TimelineId, QueryError> {
    if let Some(digits) = get::<Option<String>>(row, "primary_timeline")? {
        let timeline = u32::from_str_radix(&digits, 16).map_err(|error| unexpected(&error))?;
        return Ok(TimelineId(timeline));
    }
    if let Some(timeline) = get::<Option<i32>>(row, "receiver_timeline")? {
        return Ok(TimelineId(timeline.cast_unsigned()));
    }
    let control = get::<Option<i32>>(row, "control_timeline")?.unwrap_or_default();
    let files = segments.iter().map(|segment| segment.timeline()).max();
    Ok(files.unwrap_or_default().max(TimelineId(control.cast_unsigned())))
}

/// The first position that `pg_wal` still holds in the history of `timeline`; newer timelines do not count.
fn oldest(segments: &[WalFile], timeline: TimelineId, segment_size_bytes: u64) -> Option<Lsn> {
    segments
        .iter()
        .filter(|segment| segment.timeline() <= timeline)
        .filter_map(|segment| segment.start(segment_size_bytes))
        .min()
}

fn get<'row, T: FromSql<'row>>(row: &'row Row, column: &str) -> Result<T, QueryError> {
    row.try_get(column).map_err(|error| unexpected(&error))
}

fn lsn(row: &Row, column: &str) -> Result<Option<Lsn>, QueryError> {
    Ok(get::<Option<PgLsn>>(row, column)?.map(|lsn| Lsn(lsn.into())))
}

fn rows<T: DeserializeOwned>(row: &Row, column: &str) -> Result<Vec<T>, QueryError> {
    get::<Option<&str>>(row, column)?
        .map_or(Ok(Vec::new()), serde_json::from_str)
        .map_err(|error| unexpected(&error))
}

fn unsigned<S, U: TryFrom<S, Error: std::error::Error>>(number: S) -> Result<U, QueryError> {
    U::try_from(number).map_err(|error| unexpected(&error))
}

fn unexpected(error: &dyn std::error::Error) -> QueryError {
    QueryError::Unexpected {
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_hid_that_the_primary_was_silent() {
        let heard = |stamp, age_ms| Some(Heard { stamp, age_ms });
        let mut silence = Silence::default();
        assert_eq!(
            silence.since(heard(100, 40), 1_000),
            Some(0),
            "nothing was asked before"
        );
        assert_eq!(silence.since(heard(900, 300), 2_000), Some(300));
        // It came after the last look, whatever a clock that was set forward says.
        assert_eq!(silence.since(heard(1_800, 3_600_000), 3_000), Some(1_000));
        // Set back by an hour: the same message, an hour in the future.
        assert_eq!(silence.since(heard(1_800, -3_597_000), 4_000), Some(2_000));
        assert_eq!(silence.since(heard(1_800, -3_596_000), 5_000), Some(3_000));
        // A message by the new clock is news.
        assert_eq!(silence.since(heard(-3_000, 10), 6_000), Some(10));
        assert_eq!(silence.since(None, 7_000), None);
        assert_eq!(silence.since(heard(1, 5), 8_000), Some(5));
    }

    #[test]
    fn the_oldest_wal_of_a_timeline_includes_its_ancestors_and_no_newer_one() {
        let segments: Vec<WalFile> = [
            "000000010000000000000003",
            "000000020000000100000002",
            "000000030000000000000001",
        ]
        .iter()
        .map(|name| name.parse().expect("a segment"))
        .collect();
        let oldest = |segments, timeline| oldest(segments, TimelineId(timeline), 16 << 20);
        assert_eq!(oldest(&segments, 2), Some(Lsn(0x0300_0000)));
        assert_eq!(oldest(&segments, 3), Some(Lsn(0x0100_0000)));
        assert_eq!(oldest(&segments[1..2], 2), Some(Lsn(0x1_0200_0000)));
        assert_eq!(oldest(&[], 1), None);
    }
}
