//! `kubectl apply -f deploy/manifests/install.yaml` on the API server double, as people do it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]
#![expect(clippy::print_stdout, reason = "what is left out is said")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use apiserver::ApiServer;
use serde_json::Value;

fn install() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/install.yaml")
}

/// A server without any definition of ours, and a way to it.
struct Bench {
    server: ApiServer,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Option<Self> {
        if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
            assert!(std::env::var_os("REQUIRE_ROOT").is_none(), "no kubectl: `make setup`");
            println!("left out: no kubectl");
            return None;
        }
        let server = ApiServer::builder().bare().start();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kubeconfig"), server.kubeconfig()).unwrap();
        Some(Self { server, directory })
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.directory.path().join("kubeconfig"))
            .arg("--cache-dir")
            .arg(self.directory.path().join("cache"))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Its output, where it succeeds.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "kubectl {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn install(&self) -> String {
        self.run(&["apply", "-f", install().to_str().unwrap()])
    }

    /// Applies a text; what is said when it is refused.
    fn refused(&self, text: &str) -> Option<String> {
        let file = self.directory.path().join("object.yaml");
        std::fs::write(&file, text).unwrap();
        let output = self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
        (!output.status.success()).then(|| String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn kubectl_installs_everything_and_a_second_time_nothing() {
    let Some(bench) = Bench::new() else { return };
    let said = bench.install();
    let documents = std::fs::read_to_string(install()).unwrap();
    let objects = documents.lines().filter(|line| line.starts_with("kind: ")).count();
    assert_eq!(
        said.lines().filter(|line| line.ends_with(" created")).count(),
        objects,
        "{said}"
    );
    assert_eq!(objects, said.lines().count());

    bench.server.writes().reset();
    let before = bench.server.revision();
    let said = bench.install();
    let changed: Vec<_> = said.lines().filter(|line| !line.ends_with(" unchanged")).collect();
    // kubectl always sends a patch for a disruption budget (its selector is to be replaced whole), which changes nothing.
    assert_eq!(
        changed,
        ["poddisruptionbudget.policy/vipline-operator configured"],
        "{said}"
    );
    assert_eq!(bench.server.writes().total(), 1, "{:?}", bench.server.writes().all());
    assert_eq!(bench.server.revision(), before, "the server keeps what it has");

    // And by server-side apply, which takes over all fields.
    let file = install();
    bench.run(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        file.to_str().unwrap(),
    ]);
    let before = bench.server.revision();
    bench.run(&["apply", "--server-side", "-f", file.to_str().unwrap()]);
    assert_eq!(bench.server.revision(), before, "an apply of the same is no write");
}

#[test]
fn definitions_have_short_names_and_columns() {
    let Some(bench) = Bench::new() else { return };
    bench.install();
    let pool = "apiVersion: vipline.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: public}\nspec: {addresses: [203.0.113.0/24]}\n";
    assert_eq!(bench.refused(pool), None);
    let said = bench.run(&["get", "vpool"]);
    let header: Vec<_> = said.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        ["NAME", "ADDRESSES", "AUTO-ASSIGN", "USED", "FREE", "CONFLICT", "AGE"]
    );
    assert!(said.contains("203.0.113.0/24") && said.contains("true"), "{said}");
    for short in ["vclaim", "vt", "vnodes", "lbn", "vtunnel"] {
        bench.run(&["get", short, "--all-namespaces"]);
    }
    assert!(
        bench
            .run(&["get", "vipline", "--all-namespaces"])
            .contains("addresspool.vipline.dev/public")
    );
}

#[test]
fn bad_pools_are_refused_with_the_reason() {
    let Some(bench) = Bench::new() else { return };
    bench.install();
    let pool = |spec: &str| {
        format!("apiVersion: vipline.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: bad}}\nspec: {spec}\n")
    };
    for (spec, reason) in [
        (
            "{addresses: [everything]}",
            "must be a CIDR block or a range FIRST-LAST of one family",
        ),
        (
            "{addresses: [203.0.113.20-203.0.113.10]}",
            "the first address of a range must not be after its last",
        ),
        (
            "{addresses: [203.0.113.7/24]}",
            "must be the network's own address: bits after the prefix are set",
        ),
        ("{addresses: []}", "spec.addresses"),
        ("{}", "spec.addresses"),
        ("{addresses: [203.0.113.0/24, 203.0.113.0/24]}", "Duplicate value"),
        ("{addresses: [203.0.113.0/24], priority: -1}", "spec.priority"),
        (
            "{addresses: [203.0.113.0/24], namespaces: [Not_A_Name]}",
            "spec.namespaces",
        ),
        ("{addresses: [203.0.113.0/24], adresses: [x]}", "unknown field"),
    ] {
        let said = bench.refused(&pool(spec)).unwrap_or_else(|| panic!("{spec} was taken"));
        assert!(said.contains(reason), "{spec}: {said}");
    }
    assert_eq!(bench.refused(&pool("{addresses: [203.0.113.0/24]}")), None);
}

#[test]
fn workloads_run_with_what_they_need_and_no_more() {
    let Some(bench) = Bench::new() else { return };
    bench.install();
    for (resource, name, capabilities) in [
        ("deployments", "vipline-operator", &[][..]),
        (
            "daemonsets",
            "vipline-lb",
            &["BPF", "PERFMON", "NET_ADMIN", "NET_RAW", "IPC_LOCK"],
        ),
        ("daemonsets", "vipline-node", &["BPF", "PERFMON", "NET_ADMIN"]),
    ] {
        let object = bench.server.read(resource, "vipline-system", name).unwrap();
        let pod = &object["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert!(security.get("privileged").is_none(), "{name}");
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]), "{name}");
        let added = security["capabilities"]["add"].as_array().into_iter().flatten();
        let added: BTreeSet<_> = added.filter_map(Value::as_str).collect();
        assert_eq!(added, capabilities.iter().copied().collect(), "{name}");
        let account = pod["serviceAccountName"].as_str().unwrap();
        assert!(
            bench
                .server
                .read("serviceaccounts", "vipline-system", account)
                .is_some(),
            "{name}: {account}"
        );
        if resource == "daemonsets" {
            assert_eq!(
                object["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1,
                "{name}"
            );
        } else {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        }
    }
}
