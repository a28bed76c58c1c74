//! What `kubectl kustomize` makes of the overlays and components, against the tests' own reader (`tests/support/kustomize.rs`), by which all else judges them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::kustomize::{build, combinations, top};

/// The first whose kustomize knows components.
const NEEDED: u32 = 21;
/// Of a program that asks nobody anything.
const LIMIT_SECONDS: &str = "60";

/// `KUBECTL`, or kubectl on PATH. It must know components; one that is too old fails the test.
fn kubectl() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| {
            let need = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/need");
            let got = Command::new(need).args(["kubectl", "kubernetes-client"]).output();
            let got = got.expect("tests/tools/need runs");
            let error = String::from_utf8_lossy(&got.stderr);
            assert!(got.status.success(), "kubectl cannot be had: {error}");
            "kubectl".to_owned()
        });
        let asked = Command::new(&program)
            .args(["version", "--client", "--output", "json"])
            .output();
        let said: Value = serde_json::from_slice(&asked.expect("kubectl runs").stdout).expect("its version");
        if let Err(why) = knows_components(&said) {
            panic!("{program}: {why}");
        }
        program
    })
}

/// By what `kubectl version` says.
fn knows_components(said: &Value) -> Result<(), String> {
    let number = |key: &str| {
        let text = said["clientVersion"][key].as_str().unwrap_or_default();
        // "32+" is built from what comes after 1.32.
        text.trim_end_matches('+')
            .parse::<u32>()
            .map_err(|error| format!("{key} \"{text}\": {error}"))
    };
    let (major, minor) = (number("major")?, number("minor")?);
    if (major, minor) < (1, NEEDED) {
        return Err(format!(
            "kubectl {major}.{minor} knows no components of kustomize: 1.{NEEDED} or later is needed, on PATH or as KUBECTL"
        ));
    }
    Ok(())
}

/// What `kubectl kustomize` prints for an overlay with components, from a folder of its own as a user has it.
fn printed(overlay: &str, components: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a folder");
    // kustomize takes no absolute paths.
    std::os::unix::fs::symlink(top(), folder.path().join("k8s")).expect("a link");
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [format!("k8s/{overlay}")],
        "components": components.iter().map(|name| format!("k8s/components/{name}")).collect::<Vec<_>>(),
    });
    std::fs::write(
        folder.path().join("kustomization.yaml"),
        kustomization.to_string(),
    )
    .expect("written");
    let mut command = Command::new("timeout");
    command
        .args([LIMIT_SECONDS, kubectl(), "kustomize"])
        .arg(folder.path());
    let output = command.output().expect("kubectl runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{overlay} {components:?}: {error}");
    serde_saphyr::from_multiple(&String::from_utf8(output.stdout).expect("text")).expect("YAML")
}

/// By kind and name, in whatever order they came.
fn by_name(objects: Vec<Value>) -> Objects {
    let text = |value: &Value| value.as_str().expect("a name").to_owned();
    let count = objects.len();
    let named: BTreeMap<_, _> = objects
        .into_iter()
        .map(|object| ((text(&object["kind"]), text(&object["metadata"]["name"])), object))
        .collect();
    assert_eq!(named.len(), count, "one is there twice: {:?}", named.keys());
    named
}

/// Objects by kind and name.
pub(crate) type Objects = BTreeMap<(String, String), Value>;

pub(crate) fn assert_same(what: &str, found: &Objects, expected: &Objects) {
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, object) in found {
        let expected = &expected[name];
        assert!(
            object == expected,
            "{name:?} of {what}: read as\n{object:#}\nand not\n{expected:#}"
        );
    }
}

/// All that the manifests are judged by is read by some lines of the tests' own.
#[test]
fn kubectl_makes_the_objects_that_the_tests_read() {
    let combinations: Vec<_> = combinations().into_iter().collect();
    // Each run waits for files and for nothing else.
    let half = combinations.len().div_ceil(2);
    std::thread::scope(|scope| {
        for part in combinations.chunks(half) {
            scope.spawn(move || {
                for (overlay, components) in part {
                    let what = format!("{overlay} {components:?}");
                    let found = by_name(build(overlay, components));
                    assert_same(&what, &found, &by_name(printed(overlay, components)));
                }
            });
        }
    });
}

/// A component that no longer fits is refused, by kubectl and by the tests' reader alike: its patches test what they change.
#[test]
fn a_component_that_does_not_fit_is_refused() {
    // The sidecar is no longer where the other looks for it.
    let components = ["classic-sidecar", "one-image"];
    let refused = |run: fn(&str, &[&str]) -> Vec<Value>| {
        std::panic::catch_unwind(|| run("overlays/lease", &components)).is_err()
    };
    assert!(refused(printed), "by kubectl");
    assert!(refused(build), "by the tests' reader");
}

#[test]
fn a_kubectl_without_components_is_told() {
    let version = |major: &str, minor: &str| json!({"clientVersion": {"major": major, "minor": minor}});
    for (minor, knows) in [("20", false), ("20+", false), ("21", true), ("32+", true)] {
        assert_eq!(knows_components(&version("1", minor)).is_ok(), knows, "{minor}");
    }
    let told = knows_components(&version("1", "20")).expect_err("it is too old");
    assert!(told.contains("1.20") && told.contains("1.21"), "{told}");
    assert!(knows_components(&json!({})).is_err());
}
