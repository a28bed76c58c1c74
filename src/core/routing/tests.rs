use super::options::SessionOptions;
use super::*;

pub(super) fn server(name: &str, role: Role, lag_bytes: Option<u64>) -> Server {
    Server {
        name: name.to_owned(),
        address: SocketAddr::from(([127, 0, 0, 1], 5432)),
        role,
        streaming: true,
        http_address: SocketAddr::from(([127, 0, 0, 1], 8008)),
        lag_bytes,
        staleness_ms: lag_bytes,
        leaving: false,
        answering: true,
        incarnation: 7,
    }
}

pub(super) fn table(servers: Vec<Server>) -> RouteTable {
    RouteTable {
        servers,
        ..RouteTable::default()
    }
}

pub(super) fn primary(name: &str) -> Server {
    server(name, Role::Primary, Some(0))
}

pub(super) fn standby(name: &str, lag_bytes: u64) -> Server {
    server(name, Role::Standby, Some(lag_bytes))
}

fn stopped(name: &str) -> Server {
    Server {
        streaming: false,
        ..standby(name, 0)
    }
}

fn policy(mode: RouteMode, fallback: ReadOnlyFallback) -> RoutePolicy {
    RoutePolicy {
        max_lag_bytes: 100,
        fallback,
        ..RoutePolicy::new(mode)
    }
}

fn read_write() -> RoutePolicy {
    policy(RouteMode::ReadWrite, ReadOnlyFallback::Primary)
}

fn read_only(fallback: ReadOnlyFallback) -> RoutePolicy {
    policy(RouteMode::ReadOnly, fallback)
}

fn opened(server: &str) -> Opened<'_> {
    Opened {
        server,
        incarnation: 7,
        role: Role::Standby,
    }
}

fn names(servers: &[&Server]) -> String {
    let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    names.join(" ")
}

#[test]
fn candidates_by_table() {
    let unknown = || server("u", Role::Standby, None);
    // servers, read-write, read-only with fallback, read-only without
    let cases: [(Vec<Server>, &str, &str, &str); 10] = [
        (vec![], "", "", ""),
        (vec![primary("p")], "p", "p", ""),
        (vec![standby("s", 0)], "", "s", "s"),
        (vec![primary("p"), standby("s", 100)], "p", "s", "s"),
        (vec![primary("p"), standby("s", 101)], "p", "p", ""),
        (vec![primary("p"), stopped("s"), unknown()], "p", "p", ""),
        (vec![stopped("s"), unknown()], "", "", ""),
        (
            vec![
                standby("c", 5),
                primary("p"),
                standby("b", 9),
                standby("a", 9),
                stopped("x"),
            ],
            "p",
            "c a b",
            "c a b",
        ),
        (vec![primary("p"), primary("q")], "", "", ""),
        (vec![primary("p"), primary("q"), standby("s", 1)], "", "s", "s"),
    ];
    for (servers, write, fallback, none) in cases {
        let table = table(servers);
        let got = |policy: &RoutePolicy| names(&candidates(policy, &table));
        assert_eq!(got(&read_write()), write, "read-write of {table:?}");
        assert_eq!(
            got(&read_only(ReadOnlyFallback::Primary)),
            fallback,
            "fallback of {table:?}"
        );
        assert_eq!(
            got(&read_only(ReadOnlyFallback::None)),
            none,
            "read-only of {table:?}"
        );
    }
}

#[test]
fn the_reason_names_what_is_missing() {
    let table = table(vec![primary("p"), standby("s", 101), stopped("t")]);
    let reason =
        |policy: &RoutePolicy, at: usize| unfit(policy, &table, &table.servers[at]).map(|r| r.to_string());
    assert_eq!(reason(&read_write(), 0), None);
    assert_eq!(reason(&read_write(), 1).as_deref(), Some("is a standby"));
    let none = read_only(ReadOnlyFallback::None);
    assert_eq!(reason(&none, 0).as_deref(), Some("is the primary"));
    assert_eq!(
        reason(&none, 1).as_deref(),
        Some("is 101 bytes behind, 100 are allowed")
    );
    assert_eq!(
        reason(&none, 2).as_deref(),
        Some("is a standby that does not stream")
    );
}

#[test]
fn the_less_used_of_two_comes_first_and_nobody_is_left_out() {
    let (a, b, c, d) = (standby("a", 0), standby("b", 0), standby("c", 0), standby("d", 0));
    let used = |server: &Server| match server.name.as_str() {
        "a" => 9,
        "b" => 1,
        "c" => 5,
        _ => 0,
    };
    for (draws, expected) in [
        ([0, 0], "b a d c"),
        ([0, 1], "c a d b"),
        ([1, 0], "b a d c"),
        ([2, 2], "d c b a"),
        ([3, 2], "d c b a"),
        ([4 + 2, 3], "c a d b"),
    ] {
        assert_eq!(
            names(&choose(
                &[&a, &b, &c, &d],
                &used,
                &|_| 100,
                [draws[0], draws[1], 50]
            )),
            expected,
            "{draws:?}"
        );
    }
    assert_eq!(names(&choose(&[&a], &used, &|_| 100, [5, 8, 0])), "a");
    assert_eq!(names(&choose(&[], &used, &|_| 100, [5, 8, 0])), "");
}

#[test]
fn one_that_has_just_come_back_gets_few_of_many() {
    let (a, b) = (standby("a", 0), standby("b", 0));
    let used = |server: &Server| if server.name == "a" { 0 } else { 50 };
    let warm = |server: &Server| if server.name == "a" { 10 } else { 100 };
    let first = |chance| names(&choose(&[&a, &b], &used, &warm, [0, 0, chance]));
    let to_a = (0..100).filter(|chance| first(*chance) == "a b").count();
    assert_eq!(to_a, 10);
}

#[test]
fn the_switch_keeps_everybody_off_the_primary() {
    let servers = vec![primary("p"), standby("s", 1)];
    let on = RouteTable {
        read_only: true,
        ..table(servers.clone())
    };
    for policy in [read_write(), read_only(ReadOnlyFallback::Primary)] {
        assert_eq!(names(&candidates(&policy, &on)), "s");
        assert_eq!(unfit(&policy, &on, &on.servers[0]), Some(Unfit::ReadOnlySwitch));
        assert_eq!(stay(&policy, &on, opened("p")), Stay::Drain);
        assert_eq!(stay(&policy, &on, opened("s")), Stay::Keep);
    }
    let off = table(servers);
    assert_eq!(
        stay(&read_write(), &off, opened("s")),
        Stay::Drain,
        "no read-only session stays behind the read-write name"
    );
}

#[test]
fn a_read_write_endpoint_may_degrade_while_there_is_no_primary() {
    let policy = RoutePolicy {
        degrade: true,
        ..read_write()
    };
    let orphans = RouteTable {
        orphaned: true,
        ..table(vec![standby("s", 1)])
    };
    assert_eq!(names(&candidates(&policy, &orphans)), "s");
    assert_eq!(names(&candidates(&read_write(), &orphans)), "");
    let back = table(vec![standby("s", 1), primary("p")]);
    assert_eq!(names(&candidates(&policy, &back)), "p");
    assert_eq!(stay(&policy, &back, opened("s")), Stay::Drain);
}

#[test]
fn bounds_while_the_primary_is_gone_are_the_policys_choice() {
    let old = Server {
        staleness_ms: Some(60_000),
        ..standby("s", 1 << 40)
    };
    let gone = RouteTable {
        orphaned: true,
        ..table(vec![old.clone()])
    };
    for (on_primary_loss, expected) in [
        (OnPrimaryLoss::Serve, None),
        (OnPrimaryLoss::ServeFor { ms: 60_000 }, None),
        (OnPrimaryLoss::ServeFor { ms: 59_999 }, Some(Unfit::PrimaryLost)),
        (OnPrimaryLoss::Refuse, Some(Unfit::PrimaryLost)),
    ] {
        let policy = RoutePolicy {
            on_primary_loss,
            ..RoutePolicy::new(RouteMode::ReadOnly)
        };
        assert_eq!(unfit(&policy, &gone, &old), expected);
    }
    let there = table(vec![primary("p"), old]);
    let policy = RoutePolicy::new(RouteMode::ReadOnly);
    assert!(matches!(
        unfit(&policy, &there, &there.servers[1]),
        Some(Unfit::LagTooLarge { .. })
    ));
}

/// Beside one that had nearly everything, a standby of any age served: whichever a client got by chance.
#[test]
fn without_a_primary_a_standby_far_behind_another_served_too() {
    let servers = vec![standby("near", 50), standby("far", 151), standby("as_far", 150)];
    let unknown = server("unknown", Role::Standby, None);
    let gone = |mut servers: Vec<Server>| {
        servers.push(unknown.clone());
        RouteTable {
            orphaned: true,
            ..table(servers)
        }
    };
    let reads = read_only(ReadOnlyFallback::Primary);
    assert_eq!(names(&candidates(&reads, &gone(servers.clone()))), "near as_far");
    let rest = gone(vec![standby("far", 1 << 40)]);
    assert_eq!(
        names(&candidates(&reads, &rest)),
        "far",
        "it has the newest that exists"
    );
    assert_eq!(names(&candidates(&reads, &gone(vec![]))), "unknown");
    // A client's own limit counts from the primary's last word, as everywhere.
    let own = SessionOptions {
        max_lag_bytes: Some(100),
        ..SessionOptions::default()
    };
    let own = own.applied_to(&reads);
    assert_eq!(names(&candidates(&own, &gone(servers))), "near");
    assert_eq!(names(&candidates(&own, &rest)), "");
}

/// It may acknowledge commits elsewhere: a read-only endpoint served standbys of any age.
#[test]
fn bounds_hold_while_the_primary_is_merely_silent() {
    let old = |staleness_ms, lag_bytes| Server {
        staleness_ms: Some(staleness_ms),
        ..standby("s", lag_bytes)
    };
    let serve = OnPrimaryLoss::Serve;
    let for_a_minute = OnPrimaryLoss::ServeFor { ms: 60_000 };
    let refuse = OnPrimaryLoss::Refuse;
    // staleness, lag, what the policy says of a loss; read-only while silent, once gone, and read-write switched to standbys while silent
    for (staleness_ms, lag_bytes, on_primary_loss, expected) in [
        (10_000, 100, serve, ["s", "s", "s"]),
        (10_001, 100, serve, ["", "s", "s"]),
        (10_000, 101, serve, ["", "s", "s"]),
        (10_000, 100, for_a_minute, ["s", "s", "s"]),
        (60_000, 100, for_a_minute, ["", "s", "s"]),
        (60_001, 100, for_a_minute, ["", "", ""]),
        (10_000, 100, refuse, ["s", "", ""]),
        (10_001, 100, refuse, ["", "", ""]),
    ] {
        let silent = RouteTable {
            unheard: true,
            ..table(vec![old(staleness_ms, lag_bytes)])
        };
        let gone = RouteTable {
            orphaned: true,
            ..silent.clone()
        };
        let switched = RouteTable {
            read_only: true,
            ..silent.clone()
        };
        let with = |policy: RoutePolicy| RoutePolicy {
            on_primary_loss,
            ..policy
        };
        let reads = with(read_only(ReadOnlyFallback::Primary));
        let got = [
            names(&candidates(&reads, &silent)),
            names(&candidates(&reads, &gone)),
            names(&candidates(&with(read_write()), &switched)),
        ];
        assert_eq!(got, expected, "{staleness_ms} {lag_bytes} {on_primary_loss:?}");
    }
}

#[test]
fn too_stale_is_unfit_though_no_byte_is_missing() {
    let stale = |staleness_ms| Server {
        staleness_ms,
        ..standby("s", 0)
    };
    let policy = RoutePolicy::new(RouteMode::ReadOnly);
    let reason = |server: Server| unfit(&policy, &table(vec![]), &server);
    assert_eq!(reason(stale(Some(10_000))), None);
    assert_eq!(reason(stale(None)), Some(Unfit::StalenessUnknown));
    let too_stale = Unfit::TooStale {
        staleness_ms: 10_001,
        max_staleness_ms: 10_000,
    };
    assert_eq!(reason(stale(Some(10_001))), Some(too_stale));
    assert_eq!(too_stale.to_string(), "is 10001 ms stale, 10000 are allowed");
}

#[test]
fn a_session_stays_or_is_drained_or_is_cut() {
    use Stay::{Cut, Drain, Keep};
    let leaving = |server: Server| Server {
        leaving: true,
        ..server
    };
    let restarted = Server {
        incarnation: 8,
        ..standby("s", 0)
    };
    let (write, fallback) = (read_write(), read_only(ReadOnlyFallback::Primary));
    let none = read_only(ReadOnlyFallback::None);
    for (servers, expected) in [
        (vec![], [Cut, Cut, Cut]),
        (vec![primary("p")], [Cut, Cut, Cut]),
        (vec![primary("s")], [Keep, Keep, Drain]),
        (vec![primary("s"), standby("t", 0)], [Keep, Keep, Drain]),
        (vec![primary("s"), primary("q")], [Keep, Keep, Drain]),
        (vec![leaving(primary("s"))], [Drain, Drain, Drain]),
        (vec![standby("s", 0)], [Drain, Keep, Keep]),
        (vec![standby("s", 1 << 40)], [Drain, Keep, Keep]),
        (vec![stopped("s")], [Drain, Keep, Keep]),
        (vec![server("s", Role::Standby, None)], [Drain, Keep, Keep]),
        (vec![leaving(standby("s", 0))], [Drain, Drain, Drain]),
        (vec![restarted], [Cut, Cut, Cut]),
    ] {
        let table = table(servers);
        let got = [&write, &fallback, &none].map(|policy| stay(policy, &table, opened("s")));
        assert_eq!(got, expected, "{table:?}");
    }
}

#[test]
fn reads_outlive_a_promotion_and_writes_no_loss_of_the_right() {
    let unclear = RouteTable {
        unclear: [("s".to_owned(), 7)].into(),
        ..table(vec![])
    };
    let policy = read_only(ReadOnlyFallback::Primary);
    assert_eq!(stay(&policy, &unclear, opened("s")), Stay::Keep);
    let as_primary = Opened {
        role: Role::Primary,
        ..opened("s")
    };
    assert_eq!(stay(&read_write(), &unclear, as_primary), Stay::Cut);
    let restarted = Opened {
        incarnation: 6,
        ..opened("s")
    };
    assert_eq!(stay(&policy, &unclear, restarted), Stay::Cut);
}

#[test]
fn sessions_of_one_client_fall_to_one_server_and_clients_spread() {
    let (a, b, c) = (standby("a", 0), standby("b", 0), standby("c", 0));
    let client = |n: u8| std::net::IpAddr::from([10, 0, 0, n]);
    let first = |order: Vec<&Server>, client, has: &dyn Fn(&Server) -> bool| {
        let kept = choose::keep_together(order.clone(), client, has);
        assert_eq!(kept.len(), order.len());
        kept.first().map(|server| server.name.clone())
    };
    let nowhere = |_: &Server| false;
    let mut by_server = BTreeMap::<String, usize>::new();
    for n in 0..=255 {
        let winner = first(vec![&a, &b, &c], client(n), &nowhere);
        assert_eq!(
            winner,
            first(vec![&c, &a, &b], client(n), &nowhere),
            "in whatever order"
        );
        // One that leaves takes only its own clients with it.
        let winner = winner.expect("a server");
        if winner != "c" {
            assert_eq!(first(vec![&a, &b], client(n), &nowhere).as_ref(), Some(&winner));
        }
        *by_server.entry(winner).or_default() += 1;
    }
    assert!(
        by_server.len() == 3 && by_server.values().all(|count| *count > 60),
        "{by_server:?}"
    );
    let has = |server: &Server| server.name == "b";
    assert!((0..=255).all(|n| first(vec![&a, &b, &c], client(n), &has).as_deref() == Some("b")));
    assert_eq!(first(vec![], client(1), &nowhere), None);
}
