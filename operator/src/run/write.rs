//! Carries out one [`Action`] against the API server.
//!
//! Never decides anything and never retries: it says what the API server answered, and what that means for the index.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Secret, Service};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{ClusterResourceScope, NamespaceResourceScope},
};
use operator_api::{AddressClaim, AddressPool, FIELD_MANAGER, SEED_KEY, SEED_SECRET};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{explain::Target, watch::slim};
use crate::{ServiceKey, decide::Action, index::Object};

/// Longest a write may take: a leader that lost its Lease has none in flight when the next one starts (10 s + 5 s = 15 s).
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a write did to what is watched.
#[derive(Debug)]
pub(super) enum Effect {
    /// The object is like this now.
    Is(Box<Object>),
    /// The object is gone.
    Gone(Box<Object>),
    /// What was deleted is gone: an answer to DELETE has no object.
    Deleted,
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// Random numbers for the seed.
    #[error("no random numbers for the flow-hash seed: {0}")]
    Random(getrandom::Error),
    /// No answer in time: done or not done, nobody knows.
    #[error("no answer within {} s", WRITE_TIMEOUT.as_secs())]
    Timeout,
    /// The API server's answer, or the lack of one.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// What a failed write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// 409, or 404 for what must exist: the index is behind.
    Conflict,
    /// 5xx, 429, no connection, no answer.
    Away,
    /// 400, 403, 422 and all else: it will be so the next time, too.
    Refused,
}

impl WriteError {
    /// What to do about it.
    pub(super) fn meaning(&self, target: &Target) -> Meaning {
        match self {
            Self::Random(_) | Self::Timeout => Meaning::Away,
            Self::Api(kube::Error::Api(status)) => match status.code {
                409 => Meaning::Conflict,
                // It is gone. What is created, or applied as a whole, misses its definition or its namespace.
                404 if target.is_service() || target.needs_object() => Meaning::Conflict,
                429 | 500.. => Meaning::Away,
                _ => Meaning::Refused,
            },
            Self::Api(kube::Error::SerdeError(_) | kube::Error::BuildRequest(_)) => Meaning::Refused,
            Self::Api(_) => Meaning::Away,
        }
    }
}

/// Writes as the field manager of the operator.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    namespace: String,
}

impl Writer {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
        }
    }

    /// Does it.
    pub(super) async fn write(&self, action: &Action) -> Result<Effect, WriteError> {
        match tokio::time::timeout(WRITE_TIMEOUT, self.send(action)).await {
            Ok(answer) => answer,
            Err(_) => Err(WriteError::Timeout),
        }
    }

    async fn send(&self, action: &Action) -> Result<Effect, WriteError> {
        match action {
            Action::ApplyServiceMeta {
                service,
                uid,
                finalizers,
                annotations,
            } => {
                let body = json!({
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {
                        "name": service.name, "namespace": service.namespace, "uid": uid,
                        "finalizers": finalizers, "annotations": annotations,
                    },
                });
                self.patch_service(service, &applied(), &Patch::Apply(body)).await
            }
            Action::ReplaceServiceMeta {
                service,
                resource_version,
                finalizers,
                without_annotations,
            } => {
                let mut body = json!({"metadata": {"resourceVersion": resource_version, "finalizers": finalizers}});
                for annotation in without_annotations {
                    body["metadata"]["annotations"][annotation] = Value::Null;
                }
                self.patch_service(service, &merged(), &Patch::Merge(body)).await
            }
            Action::ApplyServiceStatus {
                service,
                uid,
                ingress,
                conditions,
            } => {
                let mut status = json!({"conditions": conditions});
                if let Some(balancer) = ingress.as_ref().and_then(|status| status.load_balancer.as_ref()) {
                    status["loadBalancer"] = json!(balancer);
                }
                let body = json!({
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {"name": service.name, "namespace": service.namespace, "uid": uid},
                    "status": status,
                });
                self.patch_service_status(service, &applied(), &Patch::Apply(body))
                    .await
            }
            Action::ReplaceServiceStatus {
                service,
                resource_version,
                clear_ingress,
                conditions,
            } => {
                let conditions = if conditions.is_empty() {
                    Value::Null
                } else {
                    json!(conditions)
                };
                let mut body = json!({
                    "metadata": {"resourceVersion": resource_version},
                    "status": {"conditions": conditions},
                });
                if *clear_ingress {
                    body["status"]["loadBalancer"] = json!({"ingress": null});
                }
                self.patch_service_status(service, &merged(), &Patch::Merge(body)).await
            }
            Action::CreateClaim(claim) => {
                let answer = self.cluster::<AddressClaim>().create(&posted(), claim).await?;
                Ok(is(answer, Object::Claim))
            }
            Action::ReplaceClaim(claim) => {
                let name = claim.metadata.name.as_deref().unwrap_or_default();
                let answer = self.cluster::<AddressClaim>().replace(name, &posted(), claim).await?;
                Ok(is(answer, Object::Claim))
            }
            Action::DeleteClaim {
                name,
                uid,
                resource_version,
            } => delete(&self.cluster(), name, Some(uid), Some(resource_version), Object::Claim).await,
            Action::ApplyTable(table) => self.apply(table, Object::Table).await,
            Action::DeleteTable {
                name,
                uid,
                resource_version,
            } => delete(&self.own(), name, Some(uid), Some(resource_version), Object::Table).await,
            Action::ApplyNodeSet(set) => self.apply(set, Object::NodeSet).await,
            Action::DeleteNodeSet { name } => delete(&self.own(), name, None, None, Object::NodeSet).await,
            Action::ApplyTunnel(tunnel) => self.apply(tunnel, Object::Tunnel).await,
            Action::CreateSeed => {
                let answer = self.own::<Secret>().create(&posted(), &seed()?).await?;
                Ok(is(answer, Object::Seed))
            }
            Action::ApplyPoolStatus { name, status } => {
                let body = json!({
                    "apiVersion": AddressPool::api_version(&()),
                    "kind": AddressPool::kind(&()),
                    "metadata": {"name": name},
                    "status": status,
                });
                let api = self.cluster::<AddressPool>();
                let answer = api.patch_status(name, &applied(), &Patch::Apply(body)).await?;
                Ok(is(answer, Object::Pool))
            }
            Action::ApplyPeerStatus { name, status } => self.apply_status(name, status, Object::Peer).await,
            Action::ApplyAnnouncementStatus { name, status } => {
                self.apply_status(name, status, Object::Announcement).await
            }
        }
    }

    async fn patch_service(
        &self,
        service: &ServiceKey,
        parameters: &PatchParams,
        patch: &Patch<Value>,
    ) -> Result<Effect, WriteError> {
        let api = Api::<Service>::namespaced(self.client.clone(), &service.namespace);
        Ok(service_effect(api.patch(&service.name, parameters, patch).await?))
    }

    async fn patch_service_status(
        &self,
        service: &ServiceKey,
        parameters: &PatchParams,
        patch: &Patch<Value>,
    ) -> Result<Effect, WriteError> {
        let api = Api::<Service>::namespaced(self.client.clone(), &service.namespace);
        Ok(service_effect(
            api.patch_status(&service.name, parameters, patch).await?,
        ))
    }

    /// Server-side apply of an object of the operator's namespace.
    async fn apply<K>(&self, object: &K, wrap: fn(K) -> Object) -> Result<Effect, WriteError>
    where
        K: Own + Serialize,
    {
        let name = object.meta().name.as_deref().unwrap_or_default();
        let answer = self.own::<K>().patch(name, &applied(), &Patch::Apply(object)).await?;
        Ok(is(answer, wrap))
    }

    /// Server-side apply of the status of an object of the operator's namespace.
    async fn apply_status<K: Own>(
        &self,
        name: &str,
        status: &impl Serialize,
        wrap: fn(K) -> Object,
    ) -> Result<Effect, WriteError> {
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name},
            "status": status,
        });
        let api = self.own::<K>();
        let answer = api.patch_status(name, &applied(), &Patch::Apply(body)).await?;
        Ok(is(answer, wrap))
    }

    fn own<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }
}

/// A resource of the operator's namespace.
trait Own: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned {}

impl<K> Own for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned
{
}

async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: Option<&String>,
    resource_version: Option<&String>,
    wrap: fn(K) -> Object,
) -> Result<Effect, WriteError>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let preconditions = Preconditions {
        uid: uid.cloned(),
        resource_version: resource_version.cloned(),
    };
    let mut parameters = DeleteParams::default();
    if preconditions.uid.is_some() || preconditions.resource_version.is_some() {
        parameters = parameters.preconditions(preconditions);
    }
    match api.delete(name, &parameters).await?.left() {
        // Somebody's finalizer keeps it.
        Some(object) if object.meta().finalizers.as_ref().is_some_and(|it| !it.is_empty()) => Ok(is(object, wrap)),
        Some(_) | None => Ok(Effect::Deleted),
    }
}

fn applied() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

fn merged() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn posted() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn is<K: Resource>(mut object: K, wrap: fn(K) -> Object) -> Effect {
    slim(object.meta_mut());
    Effect::Is(Box::new(wrap(object)))
}

/// A Service that is being deleted goes with its last finalizer: the answer is the last that is heard of it.
fn service_effect(mut service: Service) -> Effect {
    slim(&mut service.metadata);
    let metadata = &service.metadata;
    if metadata.deletion_timestamp.is_some() && metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
        Effect::Gone(Box::new(Object::Service(service)))
    } else {
        Effect::Is(Box::new(Object::Service(service)))
    }
}

/// A new seed: 256 bits, as 64 hex digits, in a Secret that cannot be changed. It is never printed.
fn seed() -> Result<Secret, WriteError> {
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).map_err(WriteError::Random)?;
    let digits: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Secret {
        metadata: kube::core::ObjectMeta {
            name: Some(SEED_SECRET.to_owned()),
            ..Default::default()
        },
        immutable: Some(true),
        string_data: Some([(SEED_KEY.to_owned(), digits)].into()),
        type_: Some("Opaque".to_owned()),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_64_hex_digits_and_another_each_time() {
        let seeds: std::collections::BTreeSet<_> = (0..8)
            .map(|_| {
                let secret = seed().unwrap();
                assert_eq!(secret.immutable, Some(true));
                secret.string_data.unwrap()[SEED_KEY].clone()
            })
            .collect();
        assert_eq!(seeds.len(), 8);
        for seed in seeds {
            assert_eq!(seed.len(), 64);
            assert!(seed.chars().all(|digit| digit.is_ascii_hexdigit()));
        }
    }
}
