//! What controllers of a real cluster do: garbage, namespaces, definitions.
//!
//! Never at once: a moment later, as in a real cluster, so that nobody comes to rely on it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};

use crate::crd;
use crate::identity::Identity;
use crate::server::{Shared, now};
use crate::store::{Key, State, owners};
use crate::writes::{self, DeleteOptions, FieldValidation, Request};

const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Runs until the server is gone.
pub(crate) async fn run(shared: Weak<Shared>) {
    loop {
        let Some(server) = shared.upgrade() else { return };
        let delay = server.chore_delay;
        tokio::select! {
            () = server.chores.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => continue,
        }
        tokio::time::sleep(delay).await;
        once(&server);
    }
}

/// Does what there is to do, until nothing is left.
fn once(server: &Arc<Shared>) {
    let mut seen = 0;
    loop {
        let revision = server.write(|state| {
            establish_all(state);
            collect_garbage(state);
            end_namespaces(state);
            furnish_namespaces(state);
            state.revision
        });
        if revision == seen {
            return;
        }
        seen = revision;
    }
}

/// Establishes all definitions that are not.
pub(crate) fn establish_all(state: &mut State) {
    let keys: Vec<Key> = state.table(DEFINITIONS).objects.keys().cloned().collect();
    for key in keys {
        crd::establish(state, &key, &now());
    }
}

/// Deletes an object as a controller would.
fn delete(state: &mut State, table: &str, key: &Key) {
    let resource = state.registry.iter().find(|resource| resource.table == table).cloned();
    let Some(resource) = resource else {
        // Its definition is gone, and takes it along.
        state.remove(table, key, None);
        return;
    };
    let request = Request {
        resource: &resource,
        namespace: &key.0,
        name: &key.1,
        subresource: "",
        manager: "kube-controller-manager".into(),
        now: now(),
        user: Identity::admin(),
        dry_run: false,
        field_validation: FieldValidation::Ignore,
    };
    if let Err(failure) = writes::delete(state, &request, &DeleteOptions::default()) {
        tracing::debug!(%failure, table, "a chore was refused");
    }
}

/// Writes an object as a controller would, without anybody's leave.
fn put(state: &mut State, table: &str, key: &Key, value: Value) {
    let finished = crate::metadata::is_finished(&value);
    if finished {
        state.remove(table, key, Some(value));
    } else {
        state.put(table, key.clone(), value);
    }
}

/// Deletes what has owners of which none is left.
fn collect_garbage(state: &mut State) {
    for (table, key) in std::mem::take(&mut state.suspects) {
        let Some(stored) = state.find(&table, &key.0, &key.1) else {
            continue;
        };
        let has_owners = owners(&stored.value).next().is_some();
        let alone = owners(&stored.value).all(|uid| !state.by_uid.contains_key(uid));
        if has_owners && alone && stored.value["metadata"]["deletionTimestamp"].is_null() {
            delete(state, &table, &key);
        }
    }
    let mut held = Vec::new();
    for (table, key) in &state.marked {
        let Some(stored) = state.find(table, &key.0, &key.1) else {
            continue;
        };
        let metadata = &stored.value["metadata"];
        let names = metadata["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for name in names.filter(|name| *name == "foregroundDeletion" || *name == "orphan") {
            held.push((table.clone(), key.clone(), name.to_owned(), metadata["uid"].clone()));
        }
    }
    for (table, key, finalizer, uid) in held {
        let uid = uid.as_str().unwrap_or("");
        let dependents: Vec<(String, Key)> = state.dependents.get(uid).into_iter().flatten().cloned().collect();
        if finalizer == "orphan" {
            for (table, key) in &dependents {
                let Some(stored) = state.find(table, &key.0, &key.1) else {
                    continue;
                };
                let mut value = stored.value.clone();
                if let Some(owners) = value
                    .pointer_mut("/metadata/ownerReferences")
                    .and_then(Value::as_array_mut)
                {
                    owners.retain(|owner| owner["uid"] != uid);
                }
                put(state, table, key, value);
            }
        } else if !dependents.is_empty() {
            for (table, key) in &dependents {
                delete(state, table, key);
            }
            continue;
        }
        let Some(stored) = state.find(&table, &key.0, &key.1) else {
            continue;
        };
        let mut value = stored.value.clone();
        if let Some(finalizers) = value.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) {
            finalizers.retain(|name| *name != finalizer);
        }
        put(state, &table, &key, value);
    }
}

/// Empties namespaces that are about to go, and lets them go once they are empty. Definitions take their objects along.
fn end_namespaces(state: &mut State) {
    let marked = state.marked.iter().filter(|(table, _)| table == "namespaces");
    let ending: Vec<Key> = marked.map(|(_, key)| key.clone()).collect();
    for key in ending {
        let mut inside = Vec::new();
        for (table, rows) in &state.tables {
            let names = rows.objects.keys().filter(|object| object.0 == key.1);
            inside.extend(names.map(|object| (table.clone(), object.clone())));
        }
        for (table, object) in &inside {
            delete(state, table, object);
        }
        let left = state
            .tables
            .values()
            .any(|rows| rows.objects.keys().any(|object| object.0 == key.1));
        if left {
            continue;
        }
        let Some(stored) = state.find("namespaces", "", &key.1) else {
            continue;
        };
        let mut value = stored.value.clone();
        if let Some(spec) = value["spec"].as_object_mut() {
            spec.remove("finalizers");
        }
        put(state, "namespaces", &key, value);
    }
}

/// Every namespace gets its default ServiceAccount and the certificate of the cluster.
fn furnish_namespaces(state: &mut State) {
    let names: Vec<String> = state
        .table("namespaces")
        .objects
        .iter()
        .filter(|(_, stored)| stored.value["metadata"]["deletionTimestamp"].is_null())
        .map(|(key, _)| key.1.clone())
        .collect();
    for namespace in names {
        for (api, kind, table, name) in [
            ("v1", "ServiceAccount", "serviceaccounts", "default"),
            ("v1", "ConfigMap", "configmaps", "kube-root-ca.crt"),
        ] {
            if state.find(table, &namespace, name).is_some() {
                continue;
            }
            let uid = state.uid();
            let mut value = json!({"apiVersion": api, "kind": kind,
                "metadata": {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": now()}});
            if kind == "ConfigMap" {
                value["data"] = json!({"ca.crt": ""});
            }
            state.put(table, (namespace.clone(), name.to_owned()), value);
        }
    }
}
