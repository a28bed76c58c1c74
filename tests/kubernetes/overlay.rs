//! A kustomization.yaml as a user writes it: that of k8s/README.md with other images, another namespace, components.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::world::{World, image};

/// What is applied.
#[derive(Clone)]
pub(crate) struct Overlay {
    pub(crate) name: &'static str,
    /// A folder below k8s/ that has the overlay as its resource.
    pub(crate) base: Option<&'static str>,
    pub(crate) components: Vec<&'static str>,
    /// Further patches, as kustomize has them.
    pub(crate) patches: Vec<String>,
}

impl Overlay {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            base: None,
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
        let older = [("classic-sidecar", 29), ("older-jobs", 26), ("older-apis", 21)];
        let needed = older
            .iter()
            .filter(|(_, from)| world.minor < *from)
            .map(|(name, _)| *name);
        let components = self.components.iter().copied().chain(needed);
        let components: Vec<String> = components
            .map(|name| format!("{k8s}/components/{name}"))
            .collect();
        let mut text = readme("yaml");
        let mut put = |shown: &str, wanted: &str| {
            assert_eq!(
                text.matches(shown).count(),
                1,
                "\"{shown}\" in k8s/README.md: {text}"
            );
            text = text.replace(shown, wanted);
        };
        put("namespace: shop", &format!("namespace: {namespace}"));
        let base = self.base.map_or_else(
            || format!("{k8s}/overlays/{}", self.name),
            |example| format!("{k8s}/{example}"),
        );
        put("../podgres/k8s/overlays/lease ", &format!("{base} "));
        put(
            "components: []",
            &format!("components: [{}]", components.join(", ")),
        );
        for (shown, variable, default) in IMAGES {
            let (repository, tag) = split(&image(variable, default));
            put(shown, &format!("newName: \"{repository}\", newTag: \"{tag}\""));
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
/// As k8s/README.md has them.
const IMAGES: [(&str, &str, &str); 2] = [
    (
        "newName: registry.example/podgres, newTag: \"0.1.0\"",
        PODGRES_IMAGE.0,
        PODGRES_IMAGE.1,
    ),
    (
        "newName: postgres, newTag: \"17-bookworm\"",
        POSTGRES_IMAGE.0,
        POSTGRES_IMAGE.1,
    ),
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

/// The one block of k8s/README.md in this language, as it is read there.
pub(crate) fn readme(language: &str) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/k8s/README.md");
    let text = std::fs::read_to_string(file).expect("the page");
    let begin = format!("   ```{language}\n");
    let mut blocks = text.split(begin.as_str()).skip(1);
    let block = blocks.next().and_then(|rest| rest.split("   ```\n").next());
    assert!(blocks.next().is_none(), "one block alone is {language}");
    let lines = block.expect("a block").split_inclusive('\n');
    lines
        .map(|line| line.strip_prefix("   ").unwrap_or(line))
        .collect()
}
