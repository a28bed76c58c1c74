//! A kustomization.yaml as a user writes it: namespace, images, an overlay of ours, components.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::world::{World, image};

/// What is applied.
#[derive(Clone)]
pub(crate) struct Overlay {
    pub(crate) name: &'static str,
    pub(crate) components: Vec<&'static str>,
    /// Further patches, as kustomize has them.
    pub(crate) patches: Vec<String>,
}

impl Overlay {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            components: Vec::new(),
            patches: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, component: &'static str) -> Self {
        self.components.push(component);
        self
    }

    /// A folder to give to `kubectl apply -k`; components for older clusters as the cluster needs them.
    pub(crate) fn write(&self, world: &World, namespace: &str) -> TempDir {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let k8s = relative(folder.path(), &Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s"));
        let mut text = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {namespace}\n\
             resources:\n  - {k8s}/overlays/{}\ncomponents:\n",
            self.name
        );
        let older = [("classic-sidecar", 29), ("older-apis", 21)];
        let needed = older
            .iter()
            .filter(|(_, from)| world.minor < *from)
            .map(|(name, _)| *name);
        for component in self.components.iter().copied().chain(needed) {
            writeln!(text, "  - {k8s}/components/{component}").expect("a string");
        }
        text.push_str("images:\n");
        for (name, variable, default) in IMAGES {
            let (repository, tag) = split(&image(variable, default));
            writeln!(
                text,
                "  - {{name: {name}, newName: \"{repository}\", newTag: \"{tag}\"}}"
            )
            .expect("a string");
        }
        text.push_str("patches:\n");
        // Three servers on a small machine, and volumes that it can make.
        text.push_str(SMALL);
        for patch in &self.patches {
            text.push_str(patch);
        }
        std::fs::write(folder.path().join("kustomization.yaml"), text).expect("written");
        folder
    }
}

pub(crate) const PODGRES_IMAGE: (&str, &str) = ("PODGRES_TEST_IMAGE", "localhost/podgres:test");
pub(crate) const EXAMPLES_IMAGE: (&str, &str) =
    ("PODGRES_TEST_EXAMPLES_IMAGE", "localhost/podgres-examples:test");
pub(crate) const POSTGRES_IMAGE: (&str, &str) = ("PODGRES_TEST_POSTGRES_IMAGE", "localhost/postgres:17");
const IMAGES: [(&str, &str, &str); 2] = [
    ("podgres", PODGRES_IMAGE.0, PODGRES_IMAGE.1),
    ("postgres", "PODGRES_TEST_POSTGRES_IMAGE", "localhost/postgres:17"),
];
const SMALL: &str = "  - target: {kind: StatefulSet, name: pg}
    patch: |-
      - {op: replace, path: /spec/volumeClaimTemplates/0/spec/resources/requests/storage, value: 1Gi}
";

fn split(image: &str) -> (String, String) {
    let (repository, tag) = image.rsplit_once(':').expect("IMAGE:TAG");
    (repository.to_owned(), tag.to_owned())
}

/// kustomize takes no absolute paths.
fn relative(from: &Path, to: &Path) -> String {
    let from = from.canonicalize().expect("a folder");
    let to = to.canonicalize().expect("a folder");
    let common = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(common).map(|_| "..".into());
    let down = to
        .components()
        .skip(common)
        .map(|part| PathBuf::from(part.as_os_str()));
    up.chain(down).collect::<PathBuf>().display().to_string()
}
