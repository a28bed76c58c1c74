//! One pod: its environment, its containers, its end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use podgres::core::member::Ordinal;
use podgres::demo::container::Container;
use podgres::demo::control::{PodStatus, Reply, Request};
use podgres::demo::tree::{self, Scope};
use podgres::dns::Resolver;

use super::lab::{Demo, LIMIT, ORDERLY, STUBBORN, delete, stands_still, state_of};
use crate::wait::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_its_environment_runs_unprivileged_and_ends_in_order() {
    let demo = Demo::of(ORDERLY, |options| {
        options.replicas = Some(1);
        options.namespace = Some("prod".to_owned());
        options.environment = BTreeMap::from([("PODGRES_MAX_LAG".to_owned(), "1MB".to_owned())]);
    })
    .await;
    demo.until_running(1).await;
    let volume = demo.volume("demo-0");
    let environment = fs::read_to_string(volume.join("environment")).expect("environment");
    let state = demo.state();
    let address = state.pods[0].address;
    for line in [
        "POD_NAME=demo-0".to_owned(),
        "POD_NAMESPACE=prod".to_owned(),
        format!("PODGRES_LISTEN_ADDRESS={address}"),
        format!("PODGRES_DNS_SERVER={}", state.dns_server()),
        format!("PGDATA={}", volume.join("pgdata").display()),
        "PODGRES_END_WITH_PARENT=1".to_owned(),
        "PODGRES_MAX_LAG=1MB".to_owned(),
    ] {
        assert!(
            environment.lines().any(|found| found == line),
            "{line:?} is missing in\n{environment}"
        );
    }
    let password = fs::read_to_string(&state.password_file).expect("password");
    assert_eq!(password.len(), 24);
    assert!(!environment.contains(&password) && !demo.output().contains(&password));
    let secret = fs::metadata(&state.password_file).expect("password file");
    assert_eq!(secret.mode() & 0o777, 0o400);
    let user: u32 = fs::read_to_string(volume.join("user"))
        .expect("user")
        .trim()
        .parse()
        .expect("a uid");
    assert_ne!(user, 0);
    assert_eq!(secret.uid(), user);
    let log = |container: &str| {
        fs::read_to_string(demo.directory.join(format!("pods/demo-0/{container}.log"))).expect("a log")
    };
    // Said when its trap is set: an earlier TERM would end it without a word.
    eventually("what PostgreSQL says", async || !log("postgres").is_empty()).await;
    assert_eq!(
        (log("init").as_str(), log("postgres").as_str()),
        ("output of init\n", "output of postgres\n")
    );
    let resolver = Resolver::new(Some(state.dns_server())).expect("a client");
    let members = resolver
        .members(&state.topology(), Ordinal(0))
        .await
        .expect("members");
    assert_eq!(members[0].addresses, [address]);
    demo.done(delete(0)).await;
    assert_eq!(
        demo.life("demo-0").lines().take(4).collect::<Vec<_>>(),
        ["init", "postgres ending", "postgres ended", "sidecar ended",]
    );
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_end_are_started_again_alone() {
    let demo = Demo::of(STUBBORN, |options| {
        options.replicas = Some(1);
        options.grace = Duration::from_millis(300);
    })
    .await;
    // The script's init fails twice first.
    let status = demo.until_running(1).await;
    let before = &status.pods[0];
    assert_eq!(before.restarts, [(Container::Init, 2)]);
    let tree = |status: &PodStatus| demo.processes(status);
    let began = Instant::now();
    // The shells with their sleeps, and the two that have made themselves independent.
    while tree(before).len() < 7 {
        assert!(began.elapsed() < LIMIT, "{:?}", tree(before));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pid = |status: &PodStatus, wanted: Container| {
        status
            .pids
            .iter()
            .find(|(container, _)| *container == wanted)
            .map(|(_, pid)| *pid)
    };
    let postgres = pid(before, Container::Postgres).expect("postgres runs");
    let all = tree(before);
    let sidecar = Scope {
        roots: pid(before, Container::Sidecar).into_iter().collect(),
        ..Scope::default()
    };
    assert!(tree::signal(postgres, rustix::process::Signal::KILL));
    demo.until("restarted", |status| {
        pid(&status.pods[0], Container::Postgres).is_some_and(|new| new != postgres)
    })
    .await;
    let after = demo.pod(0).await.expect("the pod");
    assert_eq!(pid(&after, Container::Sidecar), pid(before, Container::Sidecar));
    assert_eq!(after.uid, before.uid);
    assert_eq!(after.restarts, [(Container::Init, 2), (Container::Postgres, 1)]);
    // Nothing of the first postgres container is left: neither its children nor its orphans.
    let alive = tree::processes();
    let sidecars = sidecar.members(&alive);
    let left: Vec<_> = all
        .iter()
        .filter(|pid| !sidecars.contains(pid))
        .filter(|pid| alive.get(pid).is_some_and(|process| process.state != 'Z'))
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd != Path::new("/")))
        .collect();
    assert!(left.is_empty(), "{left:?} of {all:?}");
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ignores_term_is_killed_after_the_grace_period() {
    let demo = Demo::of(STUBBORN, |options| {
        options.replicas = Some(1);
        options.grace = Duration::from_millis(700);
    })
    .await;
    let before = demo.until_running(1).await.pods.remove(0);
    let kept = demo.volume("demo-0").join("kept");
    fs::write(&kept, "data").expect("a file on the volume");
    let all = demo.processes(&before);
    let asked_at = Instant::now();
    demo.done(delete(0)).await;
    assert!(
        asked_at.elapsed() >= Duration::from_millis(700),
        "not even the grace period"
    );
    assert!(
        asked_at.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked_at.elapsed()
    );
    let gone = |pid: &u32| state_of(*pid).is_none_or(|state| state == 'Z');
    assert!(all.iter().all(gone), "{all:?}");
    let after = demo.until_running(1).await.pods.remove(0);
    assert_eq!((&after.name, after.address), (&before.name, before.address));
    assert_ne!(after.uid, before.uid);
    assert!(kept.exists());
    demo.done(Request::DeletePod {
        ordinal: Ordinal(0),
        force: true,
        wipe_volume: true,
        move_address: true,
    })
    .await;
    assert!(!kept.exists());
    let moved = demo.until_running(1).await.pods.remove(0);
    assert_ne!(moved.address, before.address);
    assert_eq!(demo.state().pods[0].address, moved.address);
    let state = demo.state();
    let resolver = Resolver::new(Some(state.dns_server())).expect("a client");
    let host = state.topology().pod_host(Ordinal(0));
    assert_eq!(
        resolver.addresses(&host).await.expect("an address"),
        [moved.address]
    );
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_stops_and_thaw_continues_every_process_and_force_kills_them() {
    let demo = Demo::of(STUBBORN, |options| {
        options.replicas = Some(2);
        options.grace = Duration::from_millis(300);
    })
    .await;
    let pods = demo.until_running(2).await.pods;
    demo.done(Request::Freeze { ordinal: Ordinal(1) }).await;
    let frozen = demo.processes(&pods[1]);
    assert!(frozen.len() >= 5, "{frozen:?}");
    assert!(frozen.iter().all(|pid| stands_still(*pid)), "{frozen:?}");
    assert!(
        demo.processes(&pods[0])
            .iter()
            .all(|pid| state_of(*pid) != Some('T')),
        "the other pod"
    );
    assert!(demo.pod(1).await.is_some_and(|pod| pod.frozen));
    demo.done(Request::Thaw { ordinal: Ordinal(1) }).await;
    assert!(
        demo.processes(&pods[1])
            .iter()
            .all(|pid| state_of(*pid) != Some('T'))
    );
    demo.done(Request::Freeze { ordinal: Ordinal(1) }).await;
    let asked_at = Instant::now();
    demo.done(Request::DeletePod {
        ordinal: Ordinal(1),
        force: true,
        wipe_volume: false,
        move_address: false,
    })
    .await;
    assert!(
        asked_at.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked_at.elapsed()
    );
    assert!(
        frozen
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| state == 'Z'))
    );
    let after = demo.until_running(2).await.pods;
    assert_eq!(after[0].pids, pods[0].pids, "the other pod was touched");
    for absent in [
        Request::Freeze { ordinal: Ordinal(7) },
        Request::Thaw { ordinal: Ordinal(7) },
        delete(7),
    ] {
        let reply = demo.ask(absent).await;
        assert_eq!(
            reply,
            Reply::Refused {
                message: "pod \"demo-7\" does not exist".to_owned()
            }
        );
    }
    demo.stop().await;
}
