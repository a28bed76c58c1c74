//! The manifest names the ports, probes and variables that the code has.

use clap::CommandFactory as _;
use podgres::cmd::CommandLine;
use podgres::core::cluster::check::CHECK_PATHS;

fn manifest() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/k8s/base/podgres.yaml");
    std::fs::read_to_string(path).expect("the manifest")
}

/// The default of a flag of `podgres sidecar`.
fn default_of(flag: &str) -> String {
    let command = CommandLine::command();
    let sidecar = command.find_subcommand("sidecar").expect("the verb");
    let argument = sidecar
        .get_arguments()
        .find(|a| a.get_long() == Some(flag))
        .expect(flag);
    argument.get_default_values()[0].to_string_lossy().into_owned()
}

#[test]
fn the_ports_are_the_defaults() {
    let manifest = manifest();
    for (name, flag) in [
        ("postgresql", "postgres-port"),
        ("read-write", "read-write-port"),
        ("read-only", "read-only-port"),
        ("http", "http-port"),
    ] {
        let line = format!("{{name: {name}, containerPort: {}}}", default_of(flag));
        assert!(manifest.contains(&line), "{line}");
    }
}

#[test]
fn the_probes_ask_paths_that_exist() {
    let manifest = manifest();
    let asked: Vec<&str> = manifest
        .split("httpGet: {path: ")
        .skip(1)
        .filter_map(|rest| rest.split(',').next())
        .collect();
    assert_eq!(asked.len(), 3, "startup, liveness, readiness");
    for path in asked {
        assert!(CHECK_PATHS.iter().any(|(known, _)| *known == path), "{path}");
    }
}

#[test]
fn the_shared_folder_is_where_the_code_looks() {
    let line = format!("{{name: run, mountPath: {}}}", default_of("run-dir"));
    assert_eq!(
        manifest().matches(&line).count(),
        2,
        "{line} in the server's containers (one anchor) and the sidecar"
    );
}
