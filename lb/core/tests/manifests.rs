//! The configuration files in the manifests' ConfigMaps are good.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use lb_core::config::{LbConfig, NodeConfig};

/// A file of a ConfigMap: what is indented below its key.
fn file(manifest: &str, key: &str) -> String {
    let (_, after) = manifest
        .split_once(&format!("  {key}: |\n"))
        .expect("the ConfigMap has the key");
    let lines = after
        .lines()
        .take_while(|line| line.starts_with("    ") || line.is_empty());
    lines
        .map(|line| line.strip_prefix("    ").unwrap_or_default().to_owned() + "\n")
        .collect()
}

/// Options that are shown in comments, written out.
fn uncommented(text: &str) -> String {
    let option = |line: &str| {
        line.strip_prefix("# ")
            .filter(|rest| rest.split(' ').next().unwrap().ends_with(':'))
            .map(str::to_owned)
    };
    let lines = text
        .lines()
        .map(|line| option(line).unwrap_or_else(|| line.to_owned()) + "\n");
    lines.collect()
}

#[test]
fn the_files_of_lb_nodes_and_workers_are_good_as_they_are_and_with_the_options_that_they_show() {
    let lb = file(include_str!("../../../deploy/manifests/lb.yaml"), "lb.yaml");
    assert!(LbConfig::parse_kube(&lb).unwrap().interfaces.is_empty());
    let with_options = LbConfig::parse_kube(&uncommented(&lb)).unwrap();
    assert_eq!(with_options.interfaces.len(), 1);
    assert_eq!(with_options.l2.owned.len(), 1);

    let node = file(include_str!("../../../deploy/manifests/worker.yaml"), "node.yaml");
    assert!(NodeConfig::parse_kube(&node).unwrap().interfaces.is_empty());
    assert_eq!(NodeConfig::parse_kube(&uncommented(&node)).unwrap().interfaces.len(), 1);
}
