//! The operator over TLS, as on a real cluster: an authority that only the kubeconfig or the pod knows, tokens and certificates.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use apiserver::{ApiServer, Authority, Endpoint, Identity};
use serde_json::json;

const OWN: &str = "vipline-system";
const OPERATOR: &str = env!("CARGO_BIN_EXE_vipline-operator");

/// An operator at work; killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

struct Site {
    server: ApiServer,
    authority: Authority,
    endpoint: Endpoint,
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let server = ApiServer::start();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OWN}});
        server.create(namespace).unwrap();
        let pool = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "public"},
                          "spec": {"addresses": ["203.0.113.0/24"]}});
        server.create(pool).unwrap();
        server.identity("operator", Identity::service_account(OWN, "vipline-operator"));
        let authority = Authority::new().unwrap();
        let endpoint = server.listen_tls(TcpListener::bind("127.0.0.1:0").unwrap(), &authority);
        Self {
            server,
            authority,
            endpoint,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// Writes a file of the test's directory.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn pools(&self, kubeconfig: &str) -> Output {
        let file = self.file("kubeconfig", kubeconfig);
        let mut command = Command::new(OPERATOR);
        command.args(["pools", "--kubeconfig"]).arg(file).output().unwrap()
    }

    /// Until it leads and has looked at the pool.
    fn wait_until_it_works(&self, running: &mut Running) {
        let start = Instant::now();
        let works = || {
            let lease = self.server.read("leases", OWN, "vipline-operator");
            let pool = self.server.read("addresspools", "", "public").unwrap();
            lease.is_some() && pool["status"]["free"] == 256
        };
        while !works() {
            assert_eq!(running.0.try_wait().unwrap(), None, "it ended");
            assert!(start.elapsed() < Duration::from_secs(30), "it does nothing");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn an_operator_is_known_by_its_token_and_a_person_by_a_certificate() {
    let site = Site::new();
    let file = site.file("operator", &site.endpoint.kubeconfig(Some("operator")));
    let mut command = Command::new(OPERATOR);
    command
        .args(["run", "--listen", "127.0.0.1:0", "--kubeconfig"])
        .arg(file);
    let mut running = Running(command.stdin(Stdio::null()).spawn().unwrap());
    site.wait_until_it_works(&mut running);

    let person = site.authority.client("kubernetes-admin", &["system:masters"]).unwrap();
    let output = site.pools(&site.endpoint.kubeconfig_with(&person));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("public"), "{output:?}");
}

#[test]
fn in_a_pod_the_account_says_all() {
    if !is_root() {
        assert!(std::env::var_os("REQUIRE_ROOT").is_none(), "not root");
        println!("left out: only root may mount what a pod has mounted");
        return;
    }
    let site = Site::new();
    let kubeconfig = site.endpoint.kubeconfig(None);
    let data = kubeconfig.split("certificate-authority-data: ").nth(1).unwrap();
    let data = data.split('}').next().unwrap();
    site.file("ca.b64", data);
    site.file("token", "operator");
    site.file("namespace", OWN);
    // In a mount namespace of its own.
    let script = "mount -t tmpfs none /run && account=/run/secrets/kubernetes.io/serviceaccount && mkdir -p $account \
                  && base64 -d \"$1/ca.b64\" > $account/ca.crt && cp \"$1/token\" \"$1/namespace\" $account \
                  && exec \"$2\" run --listen 127.0.0.1:0";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(site.directory.path()).arg(OPERATOR);
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    command.env("KUBERNETES_SERVICE_PORT", site.endpoint.address().port().to_string());
    let mut running = Running(command.stdin(Stdio::null()).spawn().unwrap());
    site.wait_until_it_works(&mut running);
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}

#[test]
fn a_server_of_another_authority_is_not_believed_and_nobody_is_not_served() {
    let site = Site::new();
    let good = site.endpoint.kubeconfig(Some("operator"));
    assert!(site.pools(&good).status.success(), "the control");
    let other = Authority::new().unwrap().certificate().unwrap();
    let bad = good.replace(&site.authority.certificate().unwrap(), &other);
    for (kubeconfig, word) in [(bad, "certificate"), (site.endpoint.kubeconfig(None), "Unauthorized")] {
        let output = site.pools(&kubeconfig);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(word), "{word}: {output:?}");
    }
}
