//! What must hold in a cluster at any time, and what is left of it in the end.

use std::collections::BTreeMap;

use operator_api::{AddressClaim, TransportPort, Use, VipTable};
use serde_json::{Value, json};

use super::server::Server;

impl Server {
    /// What must hold whatever was written last, whoever wrote it.
    pub(super) fn check_claims(&self) {
        let mut vips = BTreeMap::new();
        for (name, table) in &self.tables {
            for address in &table.spec.addresses {
                let claim = self.claims.get(&AddressClaim::name_of(address.ip().unwrap()));
                let holder = claim.and_then(|claim| {
                    claim
                        .spec
                        .holders
                        .iter()
                        .find(|holder| holder.service == table.spec.service)
                });
                let Some(holder) = holder else {
                    panic!("{name} names {} and does not hold it", address.address)
                };
                for port in &table.spec.ports {
                    let port = TransportPort {
                        protocol: port.protocol,
                        port: port.port,
                    };
                    assert!(
                        holder.ports.contains(&port),
                        "{name} names {port:?} of {}, which it lacks",
                        address.address
                    );
                    let other = vips.insert((address.address.clone(), port), name);
                    assert_eq!(other, None, "{name} names {port:?} of {} as well", address.address);
                }
            }
        }
        for (name, claim) in &self.claims {
            for holder in &claim.spec.holders {
                let service = self.services.get(&crate::ipam::key_of(&holder.service));
                let Some(service) =
                    service.filter(|service| service.metadata.uid.as_ref() == Some(&holder.service.uid))
                else {
                    continue;
                };
                // One of another class gives its claim back last; if it goes before, its operator sweeps.
                if crate::index::marks::is_of_other_class(service, super::server::CLASS) {
                    continue;
                }
                let finalizers = service.metadata.finalizers.clone().unwrap_or_default();
                assert!(!finalizers.is_empty(), "{name} is held by a Service that nothing keeps");
            }
        }
    }

    /// What clients rely on: no VIP is named by two statuses, and what a served Service's status names is in its table.
    pub(super) fn check_clients(&self) {
        let mut vips = BTreeMap::new();
        for (key, service) in &self.services {
            let spec = service.spec.as_ref().unwrap();
            // Whoever serves others may do with their statuses as they like.
            if spec.load_balancer_class.as_deref() != Some(super::server::CLASS) {
                continue;
            }
            // One whose new ports cannot be had is served at the old ones.
            let table = self.tables.get(&VipTable::name_of(&key.namespace, &key.name));
            let ports: Vec<(String, i32)> = match table {
                Some(table) => {
                    let ports = table.spec.ports.iter();
                    ports
                        .map(|port| (format!("{:?}", port.protocol).to_uppercase(), port.port.into()))
                        .collect()
                }
                None => {
                    let ports = spec.ports.iter().flatten();
                    ports
                        .map(|port| (port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port.port))
                        .collect()
                }
            };
            for address in super::super::status::addresses(super::super::status::ingress(service)) {
                for port in &ports {
                    let other = vips.insert((address, port.clone()), key);
                    assert_eq!(other, None, "{key} tells clients of {address} and {port:?} as well");
                }
            }
        }
        for (key, service) in &self.services {
            let table = self.tables.get(&VipTable::name_of(&key.namespace, &key.name));
            let Some(table) = table else { continue };
            let ingress = super::super::status::ingress(service);
            for address in super::super::status::addresses(ingress) {
                let named = table
                    .spec
                    .addresses
                    .iter()
                    .any(|named| named.ip() == Some(address) && named.used_as == Use::LoadBalancer);
                let adopted = !self
                    .owned
                    .get(service.metadata.uid.as_ref().unwrap())
                    .is_some_and(|owned| owned.2);
                let leaves = service.spec.as_ref().unwrap().type_.as_deref() != Some("LoadBalancer");
                // Somebody else may have it, or a port of it, there: then the table cannot name it.
                let claim = self.claims.get(&AddressClaim::name_of(address));
                let holder = claim.and_then(|claim| {
                    let mut holders = claim.spec.holders.iter();
                    holders.find(|holder| holder.service == table.spec.service)
                });
                let covers = holder.is_some_and(|holder| {
                    let ports = table.spec.ports.iter().map(|port| TransportPort {
                        protocol: port.protocol,
                        port: port.port,
                    });
                    ports.into_iter().all(|port| holder.ports.contains(&port))
                });
                let lacks = format!("{key} tells clients of {address}, which its table lacks");
                assert!(named || adopted || leaves || !covers, "{lacks}");
            }
        }
    }

    /// All that operators wrote, without versions and times.
    pub(super) fn picture(&self) -> Value {
        let strip = |mut value: Value| {
            fn strip(value: &mut Value) {
                match value {
                    Value::Object(map) => {
                        for name in [
                            "resourceVersion",
                            "uid",
                            "creationTimestamp",
                            "lastTransitionTime",
                            "deletionTimestamp",
                        ] {
                            map.remove(name);
                        }
                        map.retain(|_, value| !matches!(value, Value::Object(map) if map.is_empty()));
                        map.values_mut().for_each(strip);
                    }
                    Value::Array(list) => list.iter_mut().for_each(strip),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
                }
            }
            strip(&mut value);
            value
        };
        strip(json!({
            "services": self.services.values().collect::<Vec<_>>(),
            "claims": self.claims.values().collect::<Vec<_>>(),
            "tables": self.tables.values().collect::<Vec<_>>(),
            "sets": self.sets.values().collect::<Vec<_>>(),
            "tunnel": self.tunnel,
            "pools": self.pools.values().collect::<Vec<_>>(),
            "peers": self.peers.values().collect::<Vec<_>>(),
            "announcements": self.announcements.values().collect::<Vec<_>>(),
        }))
    }
}
