//! `deploy/manifests/crds.yaml` and `install.yaml` are made here: `make manifests` writes them (UPDATE_MANIFESTS=1), every other
//! run compares.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::{fs, path::PathBuf};

use serde_json::Value;

/// What install.yaml is made of, in the order in which it is applied: what others need comes first.
const PARTS: [&str; 7] = [
    "namespace.yaml",
    "crds.yaml",
    "rbac.yaml",
    "admission.yaml",
    "operator.yaml",
    "lb.yaml",
    "worker.yaml",
];

fn manifests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/manifests")
}

/// Whole numbers as such: bounds are floats in the type.
fn whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            #[expect(clippy::cast_possible_truncation, reason = "bounds are far below 2^53")]
            if let Some(float) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
                *value = (float as i64).into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(whole),
        Value::Object(values) => values.values_mut().for_each(whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn crds() -> String {
    let mut text = "# Made by `make manifests` from operator/api: do not edit.\n".to_owned();
    for crd in operator_api::crds() {
        let mut crd = serde_json::to_value(crd).unwrap();
        whole(&mut crd);
        text += &format!("---\n{}", serde_norway::to_string(&crd).unwrap());
    }
    text
}

fn install(crds: &str) -> String {
    let mut text = "# Made by `make manifests` from the other files of this directory: do not edit.\n".to_owned();
    for part in PARTS {
        let part_text = match part {
            "crds.yaml" => crds.to_owned(),
            other => fs::read_to_string(manifests().join(other)).unwrap(),
        };
        // Comments of a part stand before its first document, which may begin without a line of its own.
        let separator = if part_text.lines().any(|line| line == "---") && first_line_of_yaml(&part_text) == "---" {
            ""
        } else {
            "---\n"
        };
        text += &format!("{separator}{part_text}");
    }
    text
}

fn first_line_of_yaml(text: &str) -> &str {
    text.lines()
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .unwrap_or_default()
}

/// Says how the file differs, or writes it where that is asked for.
#[track_caller]
fn is_current(name: &str, wanted: &str) {
    let path = manifests().join(name);
    if std::env::var_os("UPDATE_MANIFESTS").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let line = found
        .lines()
        .zip(wanted.lines())
        .position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "deploy/manifests/{name} is not current, from line {line:?} on: run `make manifests`"
    );
}

#[test]
fn the_definitions_are_those_of_the_types() {
    is_current("crds.yaml", &crds());
}

#[test]
fn the_installation_is_the_sum_of_its_parts() {
    is_current("install.yaml", &install(&crds()));
}

/// The value of a `readonly NAME=` of the set-up script.
fn setup(name: &str) -> String {
    let script = fs::read_to_string(manifests().join("../../scripts/setup.sh")).unwrap();
    let line = script
        .lines()
        .find_map(|line| line.strip_prefix(&format!("readonly {name}=")))
        .unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn images_are_built_with_the_tools_of_this_repository() {
    let dockerfile = fs::read_to_string(manifests().join("../Dockerfile")).unwrap();
    let linker = format!("bpf-linker --version {}\n", setup("BPF_LINKER"));
    assert!(dockerfile.contains(&linker), "deploy/Dockerfile: not {linker}");
    let workspace = fs::read_to_string(manifests().join("../../Cargo.toml")).unwrap();
    let rust = workspace
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .unwrap()
        .trim_matches('"');
    let images = dockerfile.lines().filter(|line| line.starts_with("FROM rust:"));
    for image in images {
        assert!(
            image.starts_with(&format!("FROM rust:{rust}-")),
            "{image}: the workspace wants {rust}"
        );
    }
}

#[test]
fn images_of_the_manifests_are_stages_of_the_dockerfile() {
    let dockerfile = fs::read_to_string(manifests().join("../Dockerfile")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    for (file, image, stage) in [
        ("operator.yaml", "vipline-operator", "operator"),
        ("lb.yaml", "vipline", "vipline"),
        ("worker.yaml", "vipline", "vipline"),
    ] {
        let manifest = fs::read_to_string(manifests().join(file)).unwrap();
        assert!(
            manifest.contains(&format!("image: {image}:{version} ")),
            "{file}: image {image}:{version}"
        );
        assert!(dockerfile.contains(&format!("--target {stage}")) && dockerfile.contains(&format!(" AS {stage}\n")));
    }
}
