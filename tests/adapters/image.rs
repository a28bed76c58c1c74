//! `images/build` without a daemon: an OCI layout for two architectures, the same bytes each time, and the list of what is in it. Docker, Podman and
//! Buildah are stand-ins that write down what they are asked.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

fn program(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("a mode");
    path.to_owned()
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds an archive into a folder of its own; something else than podgres is in it, which is quicker and shows the same.
fn archive(architectures: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut build = Command::new(top().join("images/build"));
    build.args(["-b", "archive", "-n", "registry.example/podgres:1", "-o"]);
    build.arg(folder.path());
    for architecture in architectures {
        let text = format!("a program for {architecture}");
        let binary = program(&folder.path().join(architecture), &text);
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

/// Builds with a stand-in for the builder on PATH, which is a shell's `case` on what it is asked; each call's words are in the file `asked`, one in a line.
fn by_stand_in(builder: &str, case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >>\"${{0%/*}}/asked\"\ncase $1 in\n{case}\n*) exit 1 ;;\nesac\n"
    );
    program(&folder.path().join(builder), &text);
    let binary = program(&folder.path().join("amd64"), "a program for amd64");
    // What an earlier build left.
    std::fs::write(folder.path().join("podgres.tar"), "an older archive").expect("written");
    let path = std::env::var("PATH").expect("PATH");
    let mut build = Command::new(top().join("images/build"));
    build.env("PATH", format!("{}:{path}", folder.path().display()));
    build
        .args(["-b", builder, "-n", "registry.example/podgres:1", "-o"])
        .arg(folder.path());
    let output = build.arg(format!("amd64={}", binary.display())).output();
    let output = output.expect("images/build runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder
}

/// Its builder writes the time of building into the layer.
#[test]
fn docker_was_asked_to_build_and_gave_another_digest_each_time() {
    let folder = by_stand_in("docker", "load) cat >\"$0.loaded\" ;;");
    let expected = bytes(&archive(&["amd64"]), "podgres.tar");
    assert!(bytes(&folder, "podgres.tar") == expected);
    assert!(bytes(&folder, "docker.loaded") == expected);
}

/// k8s/README.md says that it is one, to skopeo, which looks no further.
#[test]
fn podman_and_buildah_wrote_archives_that_were_no_oci_archives() {
    let name = "registry.example/podgres:1";
    for (builder, case) in [
        (
            "podman",
            r#"build) for context; do :; done; cp "$context/podgres" "$0.built" ;;
save) while [ "$1" != -o ]; do shift; done; echo "an archive by podman" >"$2" ;;"#,
        ),
        (
            "buildah",
            r#"build) for context; do :; done; cp "$context/podgres" "$0.built" ;;
push) for place; do :; done; place=${place#oci-archive:}; echo "an archive by buildah" >"${place%%:*}" ;;"#,
        ),
    ] {
        let folder = by_stand_in(builder, case);
        let text = String::from_utf8(bytes(&folder, "asked")).expect("text");
        let asked: Vec<&str> = text.lines().collect();
        let has = |words: &[&str]| asked.windows(words.len()).any(|window| window == words);
        // The time of building would be another digest each time.
        assert!(has(&["--timestamp", "0"]), "{asked:?}");
        assert!(has(&["--platform", "linux/amd64"]), "{asked:?}");
        assert!(has(&["-t", name]), "{asked:?}");
        let version = format!("VERSION={}", env!("CARGO_PKG_VERSION"));
        assert!(has(&["--build-arg", version.as_str()]), "{asked:?}");
        let file = top().join("images/Dockerfile");
        assert!(has(&["-f", file.to_str().expect("text")]), "{asked:?}");
        assert_eq!(
            bytes(&folder, &format!("{builder}.built")),
            b"a program for amd64"
        );
        if builder == "podman" {
            assert!(has(&["--format", "oci-archive"]), "{asked:?}");
            assert_eq!(asked.last(), Some(&name));
        } else {
            let place = asked.last().expect("a place");
            assert!(place.starts_with("oci-archive:/") && place.ends_with(&format!(":{name}")));
        }
        let wanted = format!("an archive by {builder}\n");
        assert_eq!(bytes(&folder, "podgres.tar"), wanted.as_bytes());
    }
}

/// docs/benchmarks.md has the bound; what is for a lab alone may be larger.
#[test]
fn a_release_that_is_too_large_is_refused() {
    const MOST: u64 = 12_000_000;
    let built = |bytes: u64, options: &[&str]| -> (Output, bool) {
        let folder = tempfile::tempdir().expect("a folder");
        let binary = program(&folder.path().join("amd64"), "");
        let file = std::fs::File::options()
            .write(true)
            .open(&binary)
            .expect("a file");
        file.set_len(bytes).expect("a size");
        drop(file);
        let mut build = Command::new(top().join("images/build"));
        build
            .args(["-b", "archive", "-o"])
            .arg(folder.path())
            .args(options);
        let output = build.arg(format!("amd64={}", binary.display())).output();
        let there = |file: &str| folder.path().join(file).exists();
        let written = there("podgres.tar") || there("other.tar");
        (output.expect("images/build runs"), written)
    };
    let (output, written) = built(MOST, &[]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !written, "{told}");
    // With what its archive adds.
    assert!(
        told.contains("has 12011520 bytes") && told.contains("may have 12000000"),
        "{told}"
    );
    for (bytes, options) in [
        (MOST - 20_000, &[][..]),
        (MOST, &["-d"]),
        (MOST, &["-p", "other"]),
    ] {
        let (output, written) = built(bytes, options);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && written, "{options:?}: {told}");
    }
}

/// What images/rustflags of a source folder prints for a build by somebody with this cargo home.
fn rustflags(source: &Path, home: &Path, more: &[(&str, &str)]) -> Vec<String> {
    let mut script = Command::new(source.join("images/rustflags"));
    script.arg(home.join("target"));
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"] {
        script.env_remove(name);
    }
    script.env("CARGO_HOME", home.join("cargo"));
    script.envs(more.iter().copied());
    let output = script.output().expect("images/rustflags runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    text.split('\u{1f}').map(str::to_owned).collect()
}

/// Messages of panics name files: with whole paths, the digest of the image was another one in each home folder.
#[test]
fn the_image_depended_on_who_built_it() {
    let compiled = |name: &str, file: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        // In paths of different lengths, too.
        let home = folder.path().join(name);
        let script = home.join("source/images/rustflags");
        let source = home.join(file);
        for path in [&script, &source] {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        }
        std::fs::copy(top().join("images/rustflags"), &script).expect("copied");
        std::fs::write(
            &source,
            "pub fn value(given: Option<u8>) -> u8 { given.unwrap() }",
        )
        .expect("written");
        let object = home.join("object");
        let mut rustc = Command::new("rustc");
        rustc
            .args([
                "--crate-type=lib",
                "--crate-name=one",
                "--emit=obj",
                "-Cpanic=abort",
                "-o",
            ])
            .arg(&object)
            .arg(&source);
        rustc.args(rustflags(&home.join("source"), &home, &[]));
        let output = rustc.output().expect("rustc runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        std::fs::read(object).expect("the object")
    };
    for (file, shown) in [
        ("source/src/lib.rs", "/podgres/src/lib.rs"),
        ("cargo/registry/src/one/lib.rs", "/cargo/registry/src/one/lib.rs"),
        (
            "target/release/build/one/lib.rs",
            "/target/release/build/one/lib.rs",
        ),
    ] {
        let (one, other) = (compiled("me", file), compiled("somebody-else", file));
        let place = one.windows(shown.len()).any(|bytes| bytes == shown.as_bytes());
        assert!(place, "{shown} is not named");
        assert!(one == other, "{file}");
    }
}

/// Cargo looks at one variable alone.
#[test]
fn flags_of_the_users_own_are_kept_for_the_image() {
    let home = Path::new("/nobody");
    let own = |more: &[(&str, &str)]| {
        let flags = rustflags(top(), home, more);
        let at = flags
            .iter()
            .position(|flag| flag.starts_with("--remap-path-prefix="));
        let (own, ours) = flags.split_at(at.expect("a remapping"));
        assert!(ours.contains(&"--remap-path-prefix=/nobody/cargo=/cargo".to_owned()));
        assert!(
            ours.iter().any(|flag| flag.starts_with("-Clink-arg=")),
            "{ours:?}"
        );
        own.to_vec()
    };
    assert_eq!(own(&[]), Vec::<String>::new());
    let plain = ("RUSTFLAGS", "-Ctarget-cpu=native  -g");
    assert_eq!(own(&[plain]), ["-Ctarget-cpu=native", "-g"]);
    let encoded = ("CARGO_ENCODED_RUSTFLAGS", "--cfg\u{1f}name=\"a b\"");
    assert_eq!(own(&[plain, encoded]), ["--cfg", "name=\"a b\""]);
    let name = format!(
        "CARGO_TARGET_{}_UNKNOWN_LINUX_MUSL_RUSTFLAGS",
        std::env::consts::ARCH.to_uppercase()
    );
    assert_eq!(own(&[(&name, "-g")]), ["-g"]);
    // Of the image's build alone: what the tests run is not compiled twice.
    let makefile = std::fs::read_to_string(top().join("Makefile")).expect("the Makefile");
    let recipe = makefile.split("\nstatic:").nth(1).expect("the target");
    let recipe = recipe.split("\n.PHONY:").next().expect("its end");
    for word in ["$$(images/rustflags ", "CARGO_ENCODED_RUSTFLAGS"] {
        assert_eq!(recipe.matches(word).count(), 1, "{word}");
        assert_eq!(makefile.matches(word).count(), 1, "{word}");
    }
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
