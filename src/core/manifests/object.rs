//! Kubernetes' objects as far as the checks look at them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Any object.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) value: &'a Value,
}

impl<'a> Object<'a> {
    /// `None` for what is not an object of Kubernetes, e.g. an empty document.
    pub(super) fn read(value: &'a Value) -> Option<Self> {
        let metadata = &value["metadata"];
        Some(Self {
            kind: value["kind"].as_str()?,
            name: metadata["name"].as_str()?,
            namespace: metadata["namespace"].as_str().unwrap_or_default(),
            value,
        })
    }
}

/// The object of a kind and a name, in the namespace of another one.
pub(super) fn find<'a>(
    objects: &[Object<'a>],
    near: &Object<'_>,
    kind: &str,
    name: &str,
) -> Option<Object<'a>> {
    let fits = |object: &&Object<'a>| {
        object.kind == kind && object.name == name && object.namespace == near.namespace
    };
    objects.iter().find(fits).copied()
}

/// The members of a list, or nothing.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[key].as_array().into_iter().flatten()
}

/// Whether a list holds a text.
pub(super) fn holds(value: &Value, key: &str, wanted: &[&str]) -> bool {
    list(value, key)
        .filter_map(Value::as_str)
        .any(|text| wanted.contains(&text))
}

/// The parts of podgres that containers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Init,
    Sidecar,
    Server,
}

/// A container of the template.
pub(super) struct Container<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a Value,
    /// `None` for one that is not podgres'.
    pub(super) part: Option<Part>,
    /// An init container with `restartPolicy: Always`.
    pub(super) native_sidecar: bool,
    /// Variables with their values, where these are known; a flag counts as the variable that it overrules.
    pub(super) variables: Variables<'a>,
    /// Whose variables it has too, whatever they are.
    pub(super) unseen: Vec<Unseen<'a>>,
}

/// A ConfigMap or Secret that a container takes variables from, and which is not among the objects.
pub(super) struct Unseen<'a> {
    pub(super) kind: &'static str,
    pub(super) name: &'a str,
    pub(super) optional: bool,
}

/// A StatefulSet with its template.
pub(super) struct Workload<'a> {
    pub(super) object: Object<'a>,
    pub(super) spec: &'a Value,
    pub(super) pod: &'a Value,
    pub(super) containers: Vec<Container<'a>>,
}

impl<'a> Workload<'a> {
    pub(super) fn read(object: &Object<'a>, objects: &[Object<'a>], settings: &[&str]) -> Self {
        let spec = &object.value["spec"];
        let pod = &spec["template"]["spec"];
        let init = list(pod, "initContainers").map(|value| (value, value["restartPolicy"] == "Always", true));
        let main = list(pod, "containers").map(|value| (value, false, false));
        let containers = init.chain(main).map(|(value, native_sidecar, init)| {
            let (mut variables, unseen) = variables(value, object, objects);
            variables.extend(flags(value).filter(|(name, _)| settings.contains(&name.as_str())));
            Container {
                name: value["name"].as_str().unwrap_or_default(),
                value,
                part: part(value).filter(|part| *part != Part::Init || init),
                native_sidecar,
                variables,
                unseen,
            }
        });
        Self {
            object: *object,
            spec,
            pod,
            containers: containers.collect(),
        }
    }

    pub(super) fn runs_podgres(&self) -> bool {
        self.part(Part::Server).is_some() || self.part(Part::Sidecar).is_some()
    }

    pub(super) fn part(&self, part: Part) -> Option<&Container<'a>> {
        self.containers
            .iter()
            .find(|container| container.part == Some(part))
    }

    /// podgres' containers.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Container<'a>> {
        self.containers
            .iter()
            .filter(|container| container.part.is_some())
    }

    /// A variable of any of podgres' containers.
    pub(super) fn variable(&self, name: &str) -> Option<&'a str> {
        self.parts().find_map(|container| *container.variables.get(name)?)
    }

    /// As Kubernetes counts where nothing is said.
    pub(super) fn replicas(&self) -> u64 {
        self.spec["replicas"].as_u64().unwrap_or(1)
    }

    pub(super) fn led_by_lease(&self) -> bool {
        self.variable("PODGRES_LEADERSHIP") == Some("lease")
    }
}

/// The names of the `ConfigMap`s that a `StatefulSet`'s containers take variables from.
#[must_use]
pub fn config_maps(set: &Value) -> BTreeSet<String> {
    let pod = &set["spec"]["template"]["spec"];
    let containers = list(pod, "initContainers").chain(list(pod, "containers"));
    let sources = containers.flat_map(|container| list(container, "envFrom"));
    let names = sources.filter_map(|source| source["configMapRef"]["name"].as_str());
    names.map(str::to_owned).collect()
}

/// By the verb in its command or arguments.
fn part(container: &Value) -> Option<Part> {
    let words: Vec<&str> = list(container, "command")
        .chain(list(container, "args"))
        .filter_map(Value::as_str)
        .collect();
    let named = words.iter().any(|word| word.ends_with("podgres"))
        || container["image"]
            .as_str()
            .is_some_and(|image| image.contains("podgres"));
    let verb = |verb: &str| named && words.contains(&verb);
    if verb("sidecar") {
        Some(Part::Sidecar)
    } else if verb("postgres") {
        Some(Part::Server)
    } else if verb("init") {
        Some(Part::Init)
    } else {
        None
    }
}

type Variables<'a> = BTreeMap<String, Option<&'a str>>;

/// From `envFrom` and `env`, and what of the former is not among the objects.
fn variables<'a>(
    container: &'a Value,
    near: &Object<'_>,
    objects: &[Object<'a>],
) -> (Variables<'a>, Vec<Unseen<'a>>) {
    let (mut variables, mut unseen) = (Variables::new(), Vec::new());
    for source in list(container, "envFrom") {
        let prefix = source["prefix"].as_str().unwrap_or_default();
        for (kind, key) in [("ConfigMap", "configMapRef"), ("Secret", "secretRef")] {
            let reference = &source[key];
            let Some(name) = reference["name"].as_str() else {
                continue;
            };
            let Some(found) = find(objects, near, kind, name) else {
                let optional = reference["optional"] == true;
                unseen.push(Unseen { kind, name, optional });
                continue;
            };
            for (key, value) in pairs(found.value) {
                let value = value.as_str().filter(|_| kind == "ConfigMap");
                variables.insert(format!("{prefix}{key}"), value);
            }
        }
    }
    for variable in list(container, "env") {
        if let Some(name) = variable["name"].as_str() {
            variables.insert(name.to_owned(), variable["value"].as_str());
        }
    }
    (variables, unseen)
}

/// What a ConfigMap or a Secret holds; a Secret's values are encoded.
fn pairs(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let maps = ["data", "stringData"].map(|key| object[key].as_object());
    maps.into_iter().flatten().flatten()
}

/// `--max-lag=1MB` or `--max-lag 1MB` as `PODGRES_MAX_LAG`.
fn flags(container: &Value) -> impl Iterator<Item = (String, Option<&str>)> {
    let words: Vec<&str> = list(container, "command")
        .chain(list(container, "args"))
        .filter_map(Value::as_str)
        .collect();
    let next: Vec<Option<&str>> = (1..=words.len()).map(|index| words.get(index).copied()).collect();
    words.into_iter().zip(next).filter_map(|(word, next)| {
        let flag = word.strip_prefix("--")?;
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (flag, next),
        };
        let name = flag.replace('-', "_").to_uppercase();
        Some((format!("PODGRES_{name}"), value))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::check;
    use super::super::fixtures::{SETTINGS, put, working};

    #[test]
    fn a_flag_counts_as_its_variable() {
        for arguments in [json!(["--leadership=lease"]), json!(["--leadership", "lease"])] {
            let mut objects = working();
            objects[2]["data"].take();
            objects.truncate(3);
            assert_eq!(check(&objects, &SETTINGS), [], "fixed by default");
            put(
                &mut objects[0],
                "/spec/template/spec/initContainers/1/args",
                arguments,
            );
            let found = check(&objects, &SETTINGS);
            assert!(
                found.len() == 5 && found[0].problem.contains("may not get the Lease"),
                "{found:#?}"
            );
        }
    }

    /// Its containers with other variables.
    fn with(source: &Value, variables: &Value) -> Vec<Value> {
        let mut objects = working();
        for (list, index) in [("initContainers", 0), ("initContainers", 1), ("containers", 0)] {
            let container = format!("/spec/template/spec/{list}/{index}");
            put(&mut objects[0], &format!("{container}/envFrom/1"), source.clone());
            put(&mut objects[0], &format!("{container}/env/2"), variables.clone());
        }
        objects
    }

    #[test]
    fn a_password_from_a_secret_or_with_a_prefix_was_taken_for_none() {
        let nothing = json!({"name": "OTHER", "value": "x"});
        let secret = json!({"secretRef": {"name": "logins"}});
        // Whoever looks at a cluster may not read Secrets; no file has one.
        assert_eq!(check(&with(&secret, &nothing), &SETTINGS), []);
        let given = |key: &str, source: &Value, data: &Value| {
            let mut objects = with(source, &nothing);
            objects.push(json!({"kind": "Secret", "metadata": {"name": "logins"}, key: data}));
            check(&objects, &SETTINGS)
        };
        assert_eq!(given("data", &secret, &json!({"POSTGRES_PASSWORD": "eA=="})), []);
        assert_eq!(
            given("stringData", &secret, &json!({"POSTGRES_PASSWORD": "x"})),
            []
        );
        let prefixed = json!({"prefix": "POSTGRES_", "secretRef": {"name": "logins"}});
        assert_eq!(given("data", &prefixed, &json!({"PASSWORD": "eA=="})), []);
        for (source, data) in [
            (&secret, json!({"PASSWORD": "eA=="})),
            (&prefixed, json!({"POSTGRES_PASSWORD": "eA=="})),
        ] {
            let found = given("data", source, &data);
            assert_eq!(found.len(), 3, "{found:#?}");
            assert!(found[0].problem.contains("has no POSTGRES_PASSWORD_FILE"));
        }
    }

    #[test]
    fn a_config_map_that_is_not_there_was_taken_for_fixed_leadership() {
        let mut objects = working();
        objects.truncate(2);
        let found = check(&objects, &SETTINGS);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].problem.contains("there is no ConfigMap \"settings\""));
        for (list, index) in [("initContainers", 0), ("initContainers", 1), ("containers", 0)] {
            let optional = format!("/spec/template/spec/{list}/{index}/envFrom/0/configMapRef/optional");
            put(&mut objects[0], &optional, json!(true));
        }
        assert_eq!(check(&objects, &SETTINGS), []);
    }
}
