//! Everything that kube-proxies, LB nodes and other Services could ever have seen, one write after another, and what must hold after
//! each of them.
//!
//! Never looks at the present only: the watches of all kinds are put in the order of their versions, as the store had them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex},
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{WatchEvent, WatchParams},
};
use operator_api::{AddressClaim, LOAD_BALANCER_CLASS, Use, VipTable};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::stage::{OWN, Stage};

/// A write: an object as it is now, or that is gone.
#[derive(Clone, Debug)]
enum Seen {
    Service(Box<Service>),
    Table(VipTable),
    Claim(AddressClaim),
}

type History = Arc<Mutex<BTreeMap<u64, (bool, Seen)>>>;

/// Writes down what it sees from its start on.
pub(crate) struct Observer {
    history: History,
    _watches: JoinSet<()>,
}

impl Observer {
    /// Sees every write after this.
    pub(crate) async fn start(stage: &Stage) -> Self {
        let history = History::default();
        let mut watches = JoinSet::new();
        let from = stage.server.revision();
        let services = Api::<Service>::all(stage.client.clone());
        watches.spawn(follow(services, from, history.clone(), |service| {
            Seen::Service(Box::new(service))
        }));
        let tables = Api::<VipTable>::namespaced(stage.client.clone(), OWN);
        watches.spawn(follow(tables, from, history.clone(), Seen::Table));
        let claims = Api::<AddressClaim>::all(stage.client.clone());
        watches.spawn(follow(claims, from, history.clone(), Seen::Claim));
        Self {
            history,
            _watches: watches,
        }
    }

    /// What was wrong, and after which write; and how many writes there were.
    pub(crate) fn faults(&self) -> (Vec<String>, usize) {
        let history = self.history.lock().unwrap();
        let mut cluster = Cluster::default();
        let mut faults = Vec::new();
        for (version, (is_there, seen)) in &*history {
            let before = cluster.clone();
            cluster.put(*is_there, seen.clone());
            let wrong = cluster.wrong().into_iter().chain(cluster.worse_than(&before));
            faults.extend(wrong.map(|wrong| format!("at {version}: {wrong}")));
        }
        (faults, history.len())
    }
}

async fn follow<K>(api: Api<K>, from: u64, history: History, wrap: fn(K) -> Seen)
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let events = api.watch(&WatchParams::default(), &from.to_string()).await.unwrap();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let (is_there, object) = match event {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (true, object),
            Ok(WatchEvent::Deleted(object)) => (false, object),
            Ok(WatchEvent::Bookmark(_)) => continue,
            // The stage is going, or the test waits in vain for what is not seen.
            Ok(WatchEvent::Error(_)) | Err(_) => return,
        };
        let version = object
            .resource_version()
            .and_then(|version| version.parse().ok())
            .unwrap();
        history.lock().unwrap().insert(version, (is_there, wrap(object)));
    }
}

/// The cluster as it was after a write.
#[derive(Clone, Debug, Default)]
struct Cluster {
    services: BTreeMap<String, Service>,
    tables: BTreeMap<String, VipTable>,
    claims: BTreeMap<String, AddressClaim>,
}

fn put<V>(into: &mut BTreeMap<String, V>, name: String, object: V, is_there: bool) {
    if is_there {
        into.insert(name, object);
    } else {
        into.remove(&name);
    }
}

impl Cluster {
    fn put(&mut self, is_there: bool, seen: Seen) {
        match seen {
            Seen::Service(service) => put(&mut self.services, service.name_any(), *service, is_there),
            Seen::Table(table) => put(&mut self.tables, table.spec.service.name.clone(), table, is_there),
            Seen::Claim(claim) => put(&mut self.claims, claim.spec.address.clone(), claim, is_there),
        }
    }

    /// What may never be.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut told = BTreeMap::new();
        for (name, service) in self.services.iter().filter(|(_, service)| is_balanced(service)) {
            for address in addresses(service) {
                for port in ports(service) {
                    if let Some(other) = told.insert((address.clone(), port.clone()), name) {
                        wrong.push(format!("clients are told of {address}:{port:?} by {other} and {name}"));
                    }
                }
                if !self.names(name, &address) {
                    wrong.push(format!("{name} tells clients of {address}, which its table has not"));
                }
            }
        }
        for (name, table) in &self.tables {
            for address in &table.spec.addresses {
                let claim = self.claims.get(&address.address);
                let holders = claim.iter().flat_map(|claim| &claim.spec.holders);
                if !holders.into_iter().any(|holder| holder.service == table.spec.service) {
                    wrong.push(format!("{name} is served at {} without holding it", address.address));
                }
            }
        }
        wrong
    }

    /// What a Service lost that still asks for it.
    fn worse_than(&self, before: &Self) -> Vec<String> {
        let mut worse = Vec::new();
        for (name, service) in &self.services {
            let Some(old) = before.services.get(name) else { continue };
            let dies = service.metadata.deletion_timestamp.is_some();
            if is_balanced(service) && !dies && !addresses(old).is_empty() && addresses(service).is_empty() {
                worse.push(format!("{name} lost its address"));
            }
            let external = service
                .spec
                .as_ref()
                .and_then(|spec| spec.external_ips.clone())
                .unwrap_or_default();
            let lost = external
                .iter()
                .find(|address| before.names(name, address) && !self.names(name, address));
            if let Some(address) = lost.filter(|_| !dies) {
                worse.push(format!("{name} is not served at {address} any more"));
            }
        }
        worse
    }

    fn names(&self, service: &str, address: &str) -> bool {
        let table = self.tables.get(service);
        table.is_some_and(|table| table.spec.addresses.iter().any(|named| named.address == address))
    }
}

fn is_balanced(service: &Service) -> bool {
    let class = service
        .spec
        .as_ref()
        .and_then(|spec| spec.load_balancer_class.as_deref());
    class == Some(LOAD_BALANCER_CLASS)
}

fn addresses(service: &Service) -> BTreeSet<String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    ingress.filter_map(|ingress| ingress.ip.clone()).collect()
}

fn ports(service: &Service) -> BTreeSet<(i32, String)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports
        .map(|port| (port.port, port.protocol.clone().unwrap_or_default()))
        .collect()
}

/// Each fault is seen: an observer that never complains would prove nothing.
#[test]
fn the_observer_complains_of_each_fault() {
    use serde_json::json;
    let service = |name: &str, address: &str, spec: serde_json::Value| {
        let mut service = crate::stage::service(name, spec);
        service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": address}]}})).unwrap();
        Seen::Service(Box::new(service))
    };
    let table = |name: &str, address: &str| {
        let spec = json!({
            "service": {"namespace": "default", "name": name, "uid": name},
            "addresses": [{"address": address, "pool": "main", "use": Use::LoadBalancer}],
            "ports": [{"protocol": "TCP", "port": 80}], "backends": {"nodeSet": {"name": "workers"}},
        });
        Seen::Table(VipTable::new(name, serde_json::from_value(spec).unwrap()))
    };
    let claim = |address: &str, name: &str| {
        let holder =
            json!({"service": {"namespace": "default", "name": name, "uid": name}, "use": "LoadBalancer", "ports": []});
        let spec = json!({"address": address, "pool": "main", "holders": [holder]});
        Seen::Claim(AddressClaim::new(address, serde_json::from_value(spec).unwrap()))
    };
    let good = || {
        let mut cluster = Cluster::default();
        cluster.put(true, claim("a", "web"));
        cluster.put(true, table("web", "a"));
        cluster.put(true, service("web", "a", json!({})));
        assert_eq!(cluster.wrong(), [""; 0]);
        cluster
    };
    let complaint = |is_there: bool, seen: Seen| {
        let (before, mut cluster) = (good(), good());
        cluster.put(is_there, seen);
        let mut all = cluster.wrong();
        all.extend(cluster.worse_than(&before));
        all.join("; ")
    };
    assert!(complaint(false, claim("a", "web")).contains("without holding it"));
    assert!(complaint(false, table("web", "a")).contains("which its table has not"));
    assert!(complaint(true, service("other", "a", json!({}))).contains("by other and web"));
    assert_eq!(
        complaint(true, Seen::Service(Box::new(crate::stage::service("web", json!({}))))),
        "web lost its address"
    );
    let mut before = good();
    let external = json!({"type": "ClusterIP", "loadBalancerClass": null, "externalIPs": ["a"]});
    before.put(true, Seen::Service(Box::new(crate::stage::service("web", external))));
    let mut after = before.clone();
    after.put(false, table("web", "a"));
    assert_eq!(after.worse_than(&before), ["web is not served at a any more"]);
}
