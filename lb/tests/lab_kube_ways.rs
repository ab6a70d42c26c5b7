//! The ways to an API server: one that falls silent; TLS, with certificates and tokens and the rights of the manifests.

mod lab_support;

use std::{
    net::TcpListener,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use apiserver::{ApiServer, Authority, Endpoint, Identity};
use kube::config::{KubeConfigOptions, Kubeconfig};
use lab::{Node, Proto, Topology, require_root};
use lab_support::{Cluster, Daemon, NAMESPACE, Silence, eventually, vip_v4};
use lb::control::KubeView;
use serde_json::{Value, json};
use vipline_operator::{
    index::Settings,
    run::{Operator, Options},
};

/// Within this it is noticed: a watch is renewed every minute.
const NOTICED: Duration = Duration::from_secs(75);

fn kube(daemon: &Daemon) -> Result<KubeView> {
    daemon.status()?.kube.context("a cluster in the status")
}

fn lines(node: &Node) -> String {
    let names: Vec<&str> = node.ifaces().iter().map(|iface| iface.name.as_str()).collect();
    format!("interfaces: [{}]\n", names.join(", "))
}

#[test]
fn an_api_server_that_falls_silent_is_missed_within_a_minute_and_followed_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let _servers = topology.serve(&[(Proto::Tcp, vip_v4(1, 80)), (Proto::Tcp, vip_v4(2, 80))])?;
    let cluster = Cluster::start(&topology)?;
    let workers = json!({"nodeSet": {"name": "workers"}});
    cluster.put_table("shop.web", "203.0.113.1", 80, &workers);
    let (lb, worker) = (topology.lb(0), topology.worker(0));
    let ways = [lb, worker].map(|node| Silence::before(cluster.endpoint(node), node));
    let [to_lb, to_worker] = ways;
    let (to_lb, to_worker) = (to_lb?, to_worker?);
    let mut daemons = [
        Cluster::spawn_by("run", lb, &lines(lb), &to_lb.kubeconfig())?,
        Cluster::spawn_by("node", worker, &lines(worker), &to_worker.kubeconfig())?,
    ];
    daemons.iter_mut().try_for_each(Daemon::ready)?;
    for daemon in &daemons {
        eventually("it is connected", || Ok(kube(daemon)?.connected_s.is_some()))?;
    }

    to_lb.fall();
    to_worker.fall();
    cluster.put_table("shop.more", "203.0.113.2", 80, &workers);
    let tunnel = cluster.server.read("tunnelconfigs", NAMESPACE, "default");
    let mut tunnel = tunnel.context("a TunnelConfig")?["spec"].clone();
    tunnel["vipPrefixes"] = json!(["203.0.113.0/24", "2001:db8:f00d::/64", "192.0.2.0/24"]);
    let revision = cluster.put("TunnelConfig", "default", tunnel);
    let start = Instant::now();
    while daemons
        .iter()
        .map(kube)
        .any(|kube| kube.is_ok_and(|kube| kube.connected_s.is_some()))
    {
        ensure!(start.elapsed() < NOTICED, "not missed within {NOTICED:?}");
        sleep(Duration::from_millis(500));
    }
    // And as long as it is silent, it is away.
    let missed = Instant::now();
    while missed.elapsed() < Duration::from_secs(15) {
        for daemon in &daemons {
            let kube = kube(daemon)?;
            ensure!(kube.connected_s.is_none() && !kube.away.is_empty(), "{kube:?}");
        }
        sleep(Duration::from_millis(200));
    }
    let client = topology.client();
    assert_eq!(client.http_get(vip_v4(1, 80), 10)?.len(), 10);
    assert_eq!(daemons[0].status()?.vips, 2, "nothing was learnt");

    // What stood stays dead: who waits on it waits for ever.
    to_lb.end();
    to_worker.end();
    let heard = Instant::now();
    while !(daemons
        .iter()
        .map(kube)
        .all(|kube| kube.is_ok_and(|kube| kube.connected_s.is_some()))
        && daemons[0].status()?.vips == 4
        && kube(&daemons[1])?.tables_revision == revision)
    {
        ensure!(heard.elapsed() < Duration::from_secs(40), "{:?}", kube(&daemons[1])?);
        sleep(Duration::from_millis(100));
    }
    assert_eq!(client.http_get(vip_v4(2, 80), 10)?.len(), 10);
    Ok(())
}

/// A server on which deploy/manifests/install.yaml was applied, and who heeds its roles and policies.
fn installed() -> Result<ApiServer> {
    let server = ApiServer::builder().bare().rbac().start();
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig())?;
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/install.yaml");
    let mut kubectl = Command::new("kubectl");
    kubectl
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--cache-dir")
        .arg(directory.path());
    lab::output(kubectl.args(["apply", "-f"]).arg(manifests))?;
    Ok(server)
}

/// A worker node, a pool of one address, and a Service with an endpoint on the worker.
fn put_service(server: &ApiServer, worker: &Node) -> Result<()> {
    let status = json!({"addresses": [{"type": "InternalIP", "address": worker.addr_v4().to_string()}]});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": worker.name()}});
    let mut with_status = node.clone();
    with_status["status"] = status;
    let objects: [Value; 4] = [
        node,
        json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "public"},
               "spec": {"addresses": ["203.0.113.1/32"]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
               "spec": {"type": "LoadBalancer", "loadBalancerClass": "vipline.dev/xdp", "selector": {"app": "web"},
                        "ports": [{"port": 80}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
               "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
               "endpoints": [{"addresses": ["10.244.0.1"], "nodeName": worker.name(), "conditions": {"ready": true}}],
               "ports": [{"port": 80}]}),
    ];
    for object in objects {
        server.create(object).map_err(|failure| anyhow!("{failure:?}"))?;
    }
    server
        .update_status(with_status)
        .map_err(|failure| anyhow!("{failure:?}"))?;
    Ok(())
}

fn operator(endpoint: &Endpoint) -> Result<Operator> {
    let kubeconfig = Kubeconfig::from_yaml(&endpoint.kubeconfig(Some("operator")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = KubeConfigOptions::default();
    let config = runtime.block_on(kube::Config::from_custom_kubeconfig(kubeconfig, &options))?;
    let settings = Settings {
        namespace: NAMESPACE.to_owned(),
        class: "vipline.dev/xdp".to_owned(),
        ..Settings::default()
    };
    Ok(Operator::start(config, Options::new(settings))?)
}

#[test]
fn over_tls_a_service_is_served_by_who_is_known_and_nobody_else_learns_anything() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().lbs(2).workers(1).build()?;
    topology.route(vip_v4(1, 80).ip(), 32, &[topology.lb(0)])?;
    let _servers = topology.serve(&[(Proto::Tcp, vip_v4(1, 80))])?;
    let server = installed()?;
    let authority = Authority::new()?;
    server.identity("operator", Identity::service_account(NAMESPACE, "vipline-operator"));
    let (lb, other, worker) = (topology.lb(0), topology.lb(1), topology.worker(0));
    server.identity(
        "worker",
        Identity::service_account(NAMESPACE, "vipline-node").on_node(worker.name()),
    );
    put_service(&server, worker)?;
    let at = |node: &Node| -> Result<Endpoint> {
        let listener = node.ns().run(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        Ok(server.listen_tls(listener, &authority))
    };
    let _operator = operator(&server.listen_tls(TcpListener::bind("127.0.0.1:0")?, &authority))?;
    let (to_lb, to_worker) = (at(lb)?, at(worker)?);

    // A server that this node's authority did not vouch for; nobody; a worker agent, who is no LB node.
    let stranger = Authority::new()?.certificate()?;
    let of_stranger = to_lb
        .kubeconfig(Some("worker"))
        .replace(&authority.certificate()?, &stranger);
    for (way, word) in [
        (of_stranger, "invalid peer certificate"),
        (to_lb.kubeconfig(None), "Unauthorized"),
        (to_lb.kubeconfig(Some("worker")), "forbidden"),
    ] {
        let daemon = Cluster::spawn_by("run", lb, &lines(lb), &way)?;
        eventually(&format!("it says: {word}"), || Ok(daemon.log()?.contains(word)))?;
    }

    let name = |node: &Node| format!("vipline:lb-node:{}", node.name());
    let mine = authority.client(&name(lb), &["vipline:lb-nodes"])?;
    let mut daemon = Cluster::spawn_by("run", lb, &lines(lb), &to_lb.kubeconfig_with(&mine))?;
    let way = to_worker.kubeconfig(Some("worker"));
    let mut agent = Cluster::spawn_by("node", worker, &lines(worker), &way)?;
    // One that is an LB node, and says that it is another one.
    let theirs = at(other)?.kubeconfig_with(&mine);
    let impostor = Cluster::spawn_by("run", other, &lines(other), &theirs)?;
    daemon.ready()?;
    agent.ready()?;
    eventually("the Service has its address", || {
        let service = server.read("services", "default", "web").unwrap_or_default();
        Ok(service["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.1")
    })
    .with_context(|| daemon.log().unwrap_or_default())?;
    let client = topology.client().with_timeout(Duration::from_millis(500));
    eventually("the VIP is served", || {
        Ok(client.try_http_get(vip_v4(1, 80), 5)?.iter().all(Result::is_ok))
    })?;
    assert!(server.read("lbnodes", NAMESPACE, lb.name()).is_some());
    eventually("the impostor is refused", || {
        Ok(impostor.log()?.contains("only the LB node itself writes its LbNode"))
    })?;
    assert_eq!(server.read("lbnodes", NAMESPACE, other.name()), None);
    assert_eq!(server.read("leases", NAMESPACE, &format!("lb-{}", other.name())), None);
    Ok(())
}
