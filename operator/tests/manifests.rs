//! `kubectl apply -f deploy/manifests/install.yaml` on the API server double, as people do it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]
#![expect(clippy::print_stdout, reason = "what is left out is said")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use apiserver::{ApiServer, Identity};
use serde_json::{Value, json};

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
        let server = ApiServer::builder().bare().rbac().start();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kubeconfig"), server.kubeconfig()).unwrap();
        Some(Self { server, directory })
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_as("kubeconfig", arguments)
    }

    /// From now on `who` is this identity for [`Self::kubectl_as`].
    fn identity(&self, who: &str, identity: Identity) {
        self.server.identity(who, identity);
        std::fs::write(self.directory.path().join(who), self.server.kubeconfig_as(who)).unwrap();
    }

    fn kubectl_as(&self, who: &str, arguments: &[&str]) -> Output {
        Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.directory.path().join(who))
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
    // kubectl always sends a patch for a disruption budget (its selector is to be replaced whole), which changes
    // nothing.
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
    for short in ["vclaim", "vt", "vnodes", "lbn", "vtunnel", "vbgp", "vann"] {
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
fn the_example_for_those_who_come_from_metallb_is_taken() {
    let Some(bench) = Bench::new() else { return };
    bench.install();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/from-metallb.yaml");
    let said = bench.run(&["apply", "-f", example.to_str().unwrap()]);
    assert_eq!(
        said.lines().filter(|line| line.ends_with(" created")).count(),
        5,
        "{said}"
    );
    for (short, columns) in [
        ("vbgp", &["NAME", "ADDRESS", "ASN", "STATE", "VALID", "AGE"][..]),
        ("vann", &["NAME", "BGP", "L2", "NODES", "VALID", "AGE"]),
    ] {
        let said = bench.run(&["get", short, "-n", "vipline-system"]);
        let header: Vec<_> = said.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(header, columns);
    }
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
            &["BPF", "PERFMON", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "NET_BIND_SERVICE"],
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
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
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

/// Objects that are applied server-side, by name.
fn object(name: &str) -> &'static str {
    match name {
        "table" => {
            "{kind: VipTable, metadata: {name: shop.web, namespace: vipline-system}, spec: {service: {namespace: shop, name: web, uid: u}, \
             addresses: [{address: 203.0.113.7, pool: public, use: LoadBalancer}], ports: [{protocol: TCP, port: 80}], \
             backends: {nodeSet: {name: workers}}}}"
        }
        "peer" => {
            "{kind: BgpPeer, metadata: {name: tor1, namespace: vipline-system}, spec: {address: 10.0.0.1, asn: 65001, localAsn: 65000}}"
        }
        "announcement" => "{kind: Announcement, metadata: {name: core, namespace: vipline-system}, spec: {bgp: {}}}",
        "pool" => "{kind: AddressPool, metadata: {name: public}, spec: {addresses: [203.0.113.0/24]}}",
        "lb-1" => {
            "{kind: LbNode, metadata: {name: lb-1, namespace: vipline-system}, spec: {tunnelSources: [192.0.2.1/32]}}"
        }
        "lb-2" => {
            "{kind: LbNode, metadata: {name: lb-2, namespace: vipline-system}, spec: {tunnelSources: [192.0.2.2/32]}}"
        }
        "lease-1" => {
            "{kind: Lease, metadata: {name: lb-lb-1, namespace: vipline-system}, spec: {holderIdentity: lb-1}}"
        }
        "lease-2" => {
            "{kind: Lease, metadata: {name: lb-lb-2, namespace: vipline-system}, spec: {holderIdentity: lb-1}}"
        }
        "leader" => {
            "{kind: Lease, metadata: {name: vipline-operator, namespace: vipline-system}, spec: {holderIdentity: x}}"
        }
        "seed" => {
            "{kind: Secret, metadata: {name: vipline-flow-seed, namespace: vipline-system}, stringData: {seed: x}}"
        }
        "other-secret" => "{kind: Secret, metadata: {name: other, namespace: default}, stringData: {seed: x}}",
        other => panic!("{other}?"),
    }
}

fn version(kind: &str) -> &'static str {
    match kind {
        "Lease" => "coordination.k8s.io/v1",
        "Secret" => "v1",
        _ => "vipline.dev/v1alpha1",
    }
}

/// Who asks for what, and whether it is forbidden; what is not there is no matter of rights. `apply NAME` and `create
/// NAME` are of [`object`]; `PATCH` is a merge patch that changes nothing; all else is kubectl's.
const RIGHTS: [(&str, &[&str], &[&str]); 5] = [
    (
        "operator",
        &[
            "get services --all-namespaces",
            "get endpointslices --all-namespaces",
            "get nodes",
            "get namespaces",
            "get vpool",
            "get vclaim",
            "get viptables,nodesets,tunnelconfigs,lbnodes,leases -n vipline-system",
            "get bgppeers,announcements -n vipline-system",
            "get secret vipline-flow-seed -n vipline-system",
            "create seed",
            "create leader",
            "apply table",
            "PATCH /api/v1/namespaces/default/services/web",
            "PATCH /api/v1/namespaces/default/services/web/status",
            "PATCH /apis/vipline.dev/v1alpha1/addresspools/public/status",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/bgppeers/tor1/status",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/announcements/core/status",
            "delete vclaim 203.0.113.7",
            "delete viptable shop.web -n vipline-system",
        ],
        &[
            "get secrets -n vipline-system",
            "get secret other -n vipline-system",
            "get secret vipline-bgp-passwords -n vipline-system",
            "get secret vipline-flow-seed -n default",
            "create other-secret",
            "apply peer",
            "apply announcement",
            "get pods --all-namespaces",
            "delete service web -n default",
            "apply pool",
            "apply lb-1",
            "create lease-1",
            "delete vpool public",
            "get viptables -n default",
        ],
    ),
    (
        "lb-1",
        &[
            "get viptables,nodesets,tunnelconfigs,bgppeers,announcements,lbnodes -n vipline-system",
            "get secret vipline-flow-seed -n vipline-system",
            "get secret vipline-bgp-passwords -n vipline-system",
            "get node lb-1",
            "apply lb-1",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/lbnodes/lb-1/status",
            "apply lease-1",
        ],
        &[
            "get services --all-namespaces",
            "get secrets -n vipline-system",
            "get secret other -n vipline-system",
            "get nodes",
            "apply lb-2",
            "apply lease-2",
            "apply leader",
            "apply table",
            "apply peer",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/bgppeers/tor1/status",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/announcements/core/status",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/viptables/shop.web",
            "PATCH /api/v1/namespaces/default/services/web/status",
            "delete lbnode lb-1 -n vipline-system",
        ],
    ),
    (
        "outside",
        &["get viptables -n vipline-system", "apply lb-2", "apply lease-2"],
        &["apply lb-1", "apply lease-1", "apply leader", "apply table"],
    ),
    (
        "worker",
        &["get tunnelconfigs -n vipline-system"],
        &[
            "get viptables -n vipline-system",
            "get secret vipline-flow-seed -n vipline-system",
            "get nodes",
            "apply lb-1",
        ],
    ),
    // Everything of our group by a wildcard: RBAC lets it, and the policies do not.
    (
        "tenant",
        &[
            "get viptables -n vipline-system",
            "apply pool",
            "apply peer",
            "apply announcement",
        ],
        &[
            "apply table",
            "apply lb-1",
            "delete lbnode lb-2 -n vipline-system",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/bgppeers/tor1/status",
            "PATCH /apis/vipline.dev/v1alpha1/namespaces/vipline-system/announcements/core/status",
        ],
    ),
];

#[test]
fn everybody_may_do_what_it_needs_and_no_more() {
    let Some(bench) = Bench::new() else { return };
    bench.install();
    let account = |name| Identity::service_account("vipline-system", name);
    bench.identity("operator", account("vipline-operator"));
    bench.identity("lb-1", account("vipline-lb").on_node("lb-1"));
    bench.identity("worker", account("vipline-node").on_node("worker-1"));
    let outside = Identity {
        username: "vipline:lb-node:lb-2".to_owned(),
        groups: vec!["vipline:lb-nodes".to_owned()],
        ..account("vipline-lb")
    };
    bench.identity("outside", outside);
    bench.identity("tenant", Identity::service_account("shop", "tenant"));
    let group = "rbac.authorization.k8s.io";
    let tenant = [
        json!({"kind": "ClusterRole", "metadata": {"name": "tenant"},
               "rules": [{"apiGroups": ["vipline.dev"], "resources": ["*"], "verbs": ["*"]}]}),
        json!({"kind": "ClusterRoleBinding", "metadata": {"name": "tenant"},
               "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "tenant"},
               "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": "shop"}]}),
    ];
    for mut object in tenant {
        object["apiVersion"] = format!("{group}/v1").into();
        bench.server.create(object).unwrap();
    }

    for (who, may, may_not) in RIGHTS {
        let asked = may
            .iter()
            .map(|what| (what, true))
            .chain(may_not.iter().map(|what| (what, false)));
        for (what, may) in asked {
            let words: Vec<&str> = what.split(' ').collect();
            let file = bench.directory.path().join("object.yaml");
            let output = match words[..] {
                [verb @ ("apply" | "create"), name] => {
                    let mut object: Value = serde_norway::from_str(object(name)).unwrap();
                    object["apiVersion"] = version(object["kind"].as_str().unwrap()).into();
                    std::fs::write(&file, object.to_string()).unwrap();
                    let mut arguments = vec![verb, "--validate=false", "-f", file.to_str().unwrap()];
                    arguments.extend((verb == "apply").then_some("--server-side"));
                    bench.kubectl_as(who, &arguments)
                }
                // kubectl would read the object first.
                ["PATCH", path] => Command::new("curl")
                    .args(["--silent", "--show-error", "-X", "PATCH", "-d", "{}"])
                    .args(["-H", "Content-Type: application/merge-patch+json", "-o", "/dev/stderr"])
                    .arg(format!("{}/as/{who}{path}", bench.server.url()))
                    .output()
                    .unwrap(),
                _ => bench.kubectl_as(who, &words),
            };
            let said = String::from_utf8(output.stderr).unwrap();
            let forbidden = said.contains("Forbidden") || said.contains("forbidden");
            let missing = said.contains("NotFound");
            assert_eq!(!forbidden, may, "{who}: {what}: {said}");
            assert!(forbidden || missing || output.status.success(), "{who}: {what}: {said}");
        }
    }
}

/// Waits until something is there, for half a minute.
#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{what}: not within half a minute");
}

#[test]
fn the_operator_serves_a_service_with_the_rights_that_the_manifests_give() {
    let Some(bench) = Bench::new() else { return };
    bench.install();
    bench.identity(
        "operator",
        Identity::service_account("vipline-system", "vipline-operator"),
    );
    bench.identity(
        "lb-1",
        Identity::service_account("vipline-system", "vipline-lb").on_node("lb-1"),
    );
    let server = &bench.server;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"}});
    server.create(node.clone()).unwrap();
    let mut with_address = node;
    with_address["status"] = json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]});
    server.update_status(with_address).unwrap();
    let pool = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "public"},
                      "spec": {"addresses": ["203.0.113.7/32"]}});
    server.create(pool).unwrap();

    let settings = vipline_operator::index::Settings {
        namespace: "vipline-system".to_owned(),
        class: operator_api::LOAD_BALANCER_CLASS.to_owned(),
        default_class: false,
        service_selector: None,
    };
    let mut options = vipline_operator::run::Options::new(settings);
    options.leader_elect = true;
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&server.kubeconfig_as("operator")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let context = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &context);
    let operator = vipline_operator::run::Operator::start(runtime.block_on(config).unwrap(), options).unwrap();

    // An LB node, as far as the operator sees of it.
    let as_lb = |object: Value, subresource: &[&str]| {
        let file = bench.directory.path().join("lb.yaml");
        std::fs::write(&file, object.to_string()).unwrap();
        let arguments = [
            &[
                "apply",
                "--server-side",
                "--validate=false",
                "-f",
                file.to_str().unwrap(),
            ],
            subresource,
        ]
        .concat();
        let output = bench.kubectl_as("lb-1", &arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let metadata = json!({"name": "lb-1", "namespace": "vipline-system"});
    let lb_node = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "LbNode", "metadata": metadata,
                         "spec": {"tunnelSources": ["192.0.2.1/32"]}});
    as_lb(lb_node, &[]);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                       "metadata": {"name": "lb-lb-1", "namespace": "vipline-system"},
                       "spec": {"holderIdentity": "lb-1", "leaseDurationSeconds": 3600, "renewTime": format!("{:.6}", jiff::Timestamp::now())}});
    as_lb(lease, &[]);

    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
                         "spec": {"type": "LoadBalancer", "loadBalancerClass": "vipline.dev/xdp", "selector": {"app": "web"},
                                  "ports": [{"port": 80}]}});
    server.create(service).unwrap();
    let table = eventually("a table", || server.read("viptables", "vipline-system", "default.web"));
    assert_eq!(table["spec"]["addresses"][0]["address"], "203.0.113.7");
    let programmed = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "LbNode", "metadata": {"name": "lb-1", "namespace": "vipline-system"},
                            "status": {"programmed": {"tables": table["metadata"]["resourceVersion"], "nodeSets": "1", "vips": 1}}});
    let status = format!(
        "{}/as/lb-1/apis/vipline.dev/v1alpha1/namespaces/vipline-system/lbnodes/lb-1/status",
        server.url()
    );
    let output = Command::new("curl")
        .args([
            "--silent",
            "--fail-with-body",
            "-X",
            "PATCH",
            "-d",
            &programmed.to_string(),
        ])
        .args(["-H", "Content-Type: application/merge-patch+json", &status])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let service = eventually("an address", || {
        server
            .read("services", "default", "web")
            .filter(|it| it["status"]["loadBalancer"]["ingress"].is_array())
    });
    assert_eq!(
        service["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "203.0.113.7", "ipMode": "VIP"}])
    );
    eventually("the pool's status", || {
        server
            .read("addresspools", "", "public")
            .filter(|it| it["status"]["used"] == 1)
    });
    eventually("an Event", || {
        server
            .list("events")
            .into_iter()
            .find(|it| it["reason"] == "EnsuredLoadBalancer")
    });
    eventually("the tunnel", || {
        server
            .read("tunnelconfigs", "vipline-system", "default")
            .filter(|it| it["spec"]["sources"][0] == "192.0.2.1/32")
    });
    assert!(server.read("nodesets", "vipline-system", "workers-0").is_some());
    assert!(server.read("secrets", "vipline-system", "vipline-flow-seed").is_some());

    bench.run(&["delete", "service", "web", "--wait=false"]);
    eventually("the end of the Service", || {
        server.read("services", "default", "web").is_none().then_some(())
    });
    assert!(server.list("addressclaims").is_empty() && server.list("viptables").is_empty());
    operator.shut_down().unwrap();
    let lease = server.read("leases", "vipline-system", "vipline-operator").unwrap();
    assert!(
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().is_empty(),
        "given back: {lease}"
    );
}
