//! `kubectl` against the double.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use apiserver::ApiServer;
use serde_json::json;
use tempfile::TempDir;

struct Kubectl {
    home: TempDir,
}

impl Kubectl {
    /// None where there is no `kubectl`, unless nothing may be missing.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn of(server: &ApiServer) -> Option<Self> {
        if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
            let required = std::env::var("REQUIRE_ROOT").is_ok_and(|value| value == "1");
            assert!(!required, "kubectl is missing");
            eprintln!("skipped: kubectl is missing");
            return None;
        }
        let home = TempDir::new().unwrap();
        std::fs::write(home.path().join("config"), server.kubeconfig()).unwrap();
        Some(Self { home })
    }

    fn try_run(&self, input: &str, args: &[&str]) -> Result<String, String> {
        let mut child = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.home.path().join("config"))
            .arg("--cache-dir")
            .arg(self.home.path().join("cache"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    fn run(&self, input: &str, args: &[&str]) -> String {
        self.try_run(input, args)
            .unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, annotations: {a: b}}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{name: http, port: 80}, {name: https, port: 443}]
";

const POOL: &str = "apiVersion: vipline.dev/v1alpha1
kind: AddressPool
metadata: {name: main}
spec: {addresses: [192.0.2.0/24]}
";

#[test]
fn kubectl_applies_gets_describes_patches_and_deletes() {
    let server = ApiServer::start();
    let Some(kubectl) = Kubectl::of(&server) else { return };
    assert_eq!(kubectl.run(SERVICE, &["apply", "-f", "-"]), "service/web created\n");
    assert_eq!(kubectl.run(SERVICE, &["apply", "-f", "-"]), "service/web unchanged\n");
    let fewer = SERVICE.replace(", {name: https, port: 443}", "");
    assert_eq!(kubectl.run(&fewer, &["apply", "-f", "-"]), "service/web configured\n");
    let service = server.read("services", "default", "web").unwrap();
    assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 1);
    assert!(service["spec"]["ports"][0]["nodePort"].is_number());

    assert_eq!(
        kubectl.run(POOL, &["apply", "--server-side", "-f", "-"]),
        "addresspool.vipline.dev/main serverside-applied\n"
    );
    let table = kubectl.run("", &["get", "vpool"]);
    assert!(
        table.contains("ADDRESSES") && table.contains("AUTO-ASSIGN") && table.contains("192.0.2.0/24"),
        "{table}"
    );
    let refused = kubectl
        .try_run(&POOL.replace("192.0.2.0/24]", "nonsense], x: y"), &["apply", "-f", "-"])
        .unwrap_err();
    assert!(refused.contains("unknown field \"spec.x\""), "{refused}");
    let refused = kubectl
        .try_run(&POOL.replace("192.0.2.0/24", "nonsense"), &["apply", "-f", "-"])
        .unwrap_err();
    assert!(
        refused.contains("spec.addresses[0]: Invalid value: \"nonsense\": must be a CIDR block or a range"),
        "{refused}"
    );

    let uid = service["metadata"]["uid"].clone();
    server
        .create(json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": "web.1", "namespace": "default"}, "type": "Normal", "reason": "IPAllocated",
        "note": "192.0.2.1 from pool main", "action": "Allocate", "reportingController": "vipline.dev/operator",
        "reportingInstance": "x", "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"apiVersion": "v1", "kind": "Service", "name": "web", "namespace": "default", "uid": uid}}))
        .unwrap();
    let described = kubectl.run("", &["describe", "service", "web"]);
    assert!(
        described.contains("IPAllocated") && described.contains("192.0.2.1 from pool main"),
        "{described}"
    );

    kubectl.run("", &["label", "service", "web", "tier=front"]);
    kubectl.run("", &["annotate", "service", "web", "a=c", "--overwrite"]);
    kubectl.run(
        "",
        &[
            "patch",
            "service",
            "web",
            "-p",
            r#"{"spec":{"externalTrafficPolicy":"Local"}}"#,
        ],
    );
    kubectl.run(
        "",
        &[
            "patch",
            "vpool",
            "main",
            "--type=merge",
            "-p",
            r#"{"spec":{"autoAssign":false}}"#,
        ],
    );
    let service = server.read("services", "default", "web").unwrap();
    assert_eq!(
        (
            &service["metadata"]["labels"]["tier"],
            &service["metadata"]["annotations"]["a"]
        ),
        (&json!("front"), &json!("c"))
    );
    assert!(service["spec"]["healthCheckNodePort"].is_number());
    assert!(
        kubectl
            .run("", &["get", "svc", "-A", "-l", "tier=front", "-o", "name"])
            .contains("service/web")
    );
    kubectl.run(
        "",
        &[
            "wait",
            "--for=jsonpath={.spec.type}=LoadBalancer",
            "svc/web",
            "--timeout=10s",
        ],
    );
    kubectl.run(
        "",
        &[
            "wait",
            "--for=condition=Established",
            "crd/addresspools.vipline.dev",
            "--timeout=10s",
        ],
    );
    let dry = kubectl.run("", &["delete", "service", "web", "--dry-run=server"]);
    assert!(dry.contains("deleted"), "{dry}");
    assert!(server.read("services", "default", "web").is_some());
    kubectl.run("", &["delete", "service", "web"]);
    assert!(server.read("services", "default", "web").is_none());
}
