//! `images/build` without a daemon: an OCI layout for two architectures, the same bytes each time, and the list of what is in it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// Builds an archive into a folder of its own; something else than podgres is in it, which is quicker and shows the same.
fn archive(architectures: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut build = Command::new(top.join("images/build"));
    build.args(["-b", "archive", "-n", "registry.example/podgres:1", "-o"]);
    build.arg(folder.path());
    for architecture in architectures {
        let binary = folder.path().join(architecture);
        std::fs::write(&binary, format!("a program for {architecture}")).expect("written");
        std::fs::set_permissions(&binary, Permissions::from_mode(0o755)).expect("a mode");
        build.arg(format!("{architecture}={}", binary.display()));
    }
    let output = build.output().expect("images/build runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder
}

fn bytes(folder: &tempfile::TempDir, file: &str) -> Vec<u8> {
    std::fs::read(folder.path().join(file)).expect("the file")
}

/// A file in the archive.
fn inside(folder: &tempfile::TempDir, path: &str) -> Option<Vec<u8>> {
    let mut tar = Command::new("tar");
    tar.arg("-xOf").arg(folder.path().join("podgres.tar")).arg(path);
    let output = tar.output().expect("tar runs");
    output.status.success().then_some(output.stdout)
}

fn json_inside(folder: &tempfile::TempDir, path: &str) -> Value {
    let bytes = inside(folder, path).unwrap_or_else(|| panic!("no {path}"));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// What a digest names.
fn blob(folder: &tempfile::TempDir, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().expect("a digest");
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let size = inside(folder, &path).expect("the blob").len();
    assert_eq!(descriptor["size"], size, "{digest}");
    json_inside(folder, &path)
}

#[test]
fn an_image_of_two_architectures_is_the_same_each_time() {
    let (one, other) = (archive(&ARCHITECTURES), archive(&ARCHITECTURES));
    assert!(bytes(&one, "podgres.tar") == bytes(&other, "podgres.tar"));
    assert!(bytes(&one, "podgres.sbom.json") == bytes(&other, "podgres.sbom.json"));
    assert!(
        inside(&one, "manifest.json").is_none(),
        "a docker archive holds one architecture"
    );
    let index = json_inside(&one, "index.json");
    let manifests = index["manifests"].as_array().expect("manifests");
    assert_eq!(manifests.len(), ARCHITECTURES.len());
    for (descriptor, architecture) in manifests.iter().zip(ARCHITECTURES) {
        assert_eq!(
            descriptor["platform"],
            json!({"architecture": architecture, "os": "linux"})
        );
        let configuration = blob(&one, &blob(&one, descriptor)["config"]);
        assert_eq!(configuration["architecture"], architecture);
        let run = &configuration["config"];
        assert_eq!(run["User"], "65532:65532");
        assert_eq!(run["Entrypoint"], json!(["/usr/local/bin/podgres"]));
        let label = |name: &str| run["Labels"][format!("org.opencontainers.image.{name}")].clone();
        assert_eq!(label("title"), "podgres");
        assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(label("licenses"), env!("CARGO_PKG_LICENSE"));
        assert!(configuration["created"].is_null(), "no time is in it");
    }
}

/// Its builder writes the time of building into the layer.
#[test]
fn docker_was_asked_to_build_and_gave_another_digest_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a mode");
        path
    };
    program(
        "docker",
        "#!/bin/sh\ncase $1 in\nload) cat >\"$0.loaded\" ;;\n*) exit 1 ;;\nesac\n",
    );
    let binary = program("amd64", "a program for amd64");
    let path = std::env::var("PATH").expect("PATH");
    let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build"));
    build.env("PATH", format!("{}:{path}", folder.path().display()));
    build
        .args(["-b", "docker", "-n", "registry.example/podgres:1", "-o"])
        .arg(folder.path());
    let output = build.arg(format!("amd64={}", binary.display())).output();
    let output = output.expect("images/build runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let expected = bytes(&archive(&["amd64"]), "podgres.tar");
    assert!(bytes(&folder, "podgres.tar") == expected);
    assert!(bytes(&folder, "docker.loaded") == expected);
}

#[test]
fn an_image_of_one_architecture_is_a_docker_archive_too() {
    let image = archive(&["arm64"]);
    let manifest = json_inside(&image, "manifest.json");
    assert_eq!(manifest[0]["RepoTags"], json!(["registry.example/podgres:1"]));
    let layer = manifest[0]["Layers"][0].as_str().expect("a layer");
    assert!(inside(&image, layer).is_some(), "{layer}");
    let listed: Value = serde_json::from_slice(&bytes(&image, "podgres.sbom.json")).expect("JSON");
    assert_eq!(listed["bomFormat"], "CycloneDX");
    let crates = listed["components"].as_array().expect("components");
    let tokio = crates.iter().find(|found| found["name"] == "tokio");
    assert!(!tokio.expect("tokio is linked in")["licenses"][0]["expression"].is_null());
}
