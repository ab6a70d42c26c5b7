//! What the cluster has, read once.
//!
//! Never watches and never writes.

use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Service},
};
use kube::{Api, Client, Resource, api::ListParams};
use operator_api::{AddressClaim, AddressPool, LbNode, VipTable};
use serde::de::DeserializeOwned;

use super::args::{ApiArgs, ClassArgs};
use crate::{
    index::{Index, Kind, Object, Settings},
    run::{explain::Target, watch::slim},
};

/// Objects of a page.
const PAGE: u32 = 500;

/// An index of what says how Services are: all but endpoints, nodes and what is made of them.
pub(super) async fn read(client: &Client, api: &ApiArgs, class: &ClassArgs) -> anyhow::Result<Index> {
    let own = &api.namespace;
    let mut index = Index::new(Settings {
        namespace: own.clone(),
        class: class.class.clone(),
        default_class: class.default_class,
        service_selector: class.service_selector.clone(),
    });
    let to = || client.clone();
    let (services, namespaces, pools, claims, tables, lb_nodes, leases) = tokio::try_join!(
        list(Api::<Service>::all(to()), Kind::Service, Object::Service),
        list(Api::<Namespace>::all(to()), Kind::Namespace, Object::Namespace),
        list(Api::<AddressPool>::all(to()), Kind::Pool, Object::Pool),
        list(Api::<AddressClaim>::all(to()), Kind::Claim, Object::Claim),
        list(Api::<VipTable>::namespaced(to(), own), Kind::Table, Object::Table),
        list(Api::<LbNode>::namespaced(to(), own), Kind::LbNode, Object::LbNode),
        list(Api::<Lease>::namespaced(to(), own), Kind::Lease, Object::Lease),
    )?;
    index.tick(Timestamp::now());
    index.reset(Kind::Namespace, namespaces);
    index.reset(Kind::Pool, pools);
    index.reset(Kind::Claim, claims);
    index.reset(Kind::Table, tables);
    index.reset(Kind::LbNode, lb_nodes);
    index.reset(Kind::Lease, leases);
    index.reset(Kind::Service, services);
    Ok(index)
}

/// All objects of a kind.
pub(super) async fn list<K, T>(api: Api<K>, kind: Kind, wrap: fn(K) -> T) -> anyhow::Result<Vec<T>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut parameters = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = api.list(&parameters).await.map_err(|error| said(kind, error))?;
        objects.extend(page.items.into_iter().map(|mut object| {
            slim(object.meta_mut());
            wrap(object)
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

/// An error with what to do about it.
fn said(kind: Kind, error: kube::Error) -> anyhow::Error {
    let target = Target::of_kind(kind);
    let remedy = target.remedy(&error);
    let error = anyhow::Error::new(error).context(format!("{} cannot be listed", target.resource));
    match remedy {
        Some(remedy) => error.context(remedy),
        None => error,
    }
}
