//! A node is taken out of the cluster's load balancing, or put back: desired state, which all LB nodes follow.
//!
//! By the rights of the person who asks: LB nodes have none to nodes.

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use operator_api::{LABEL_EXCLUDE_NODE, excludes};
use serde_json::json;

use super::client::{self, ConnectError};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a node is not excluded, or not put back.
#[derive(Debug, thiserror::Error)]
pub enum ExcludeError {
    /// No way to the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It has no such node.
    #[error("the cluster has no node {node:?}: `kubectl get nodes` lists them")]
    NoSuchNode {
        /// As asked for.
        node: String,
    },
    /// It did not do it.
    #[error("the API server did not change node {node}: {source}")]
    Refused {
        /// As asked for.
        node: String,
        /// What it said.
        source: kube::Error,
    },
}

/// Sets or takes away the label that excludes a node from load balancing; whether that changed anything.
///
/// # Errors
///
/// No way to the API server, no such node, or no right to patch it.
pub async fn set_excluded(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
    node: &str,
    excluded: bool,
) -> Result<bool, ExcludeError> {
    let mut config = client::config(kubeconfig, context).await?;
    config.read_timeout = Some(PATIENCE);
    let nodes: Api<Node> = Api::all(Client::try_from(config).map_err(ConnectError::from)?);
    let refused = |source| ExcludeError::Refused {
        node: node.to_owned(),
        source,
    };
    let found = nodes.get_metadata_opt(node).await.map_err(refused)?;
    let found = found.ok_or_else(|| ExcludeError::NoSuchNode { node: node.to_owned() })?;
    let labels = found.metadata.labels.unwrap_or_default();
    let is_excluded = labels.get(LABEL_EXCLUDE_NODE).is_some_and(|value| excludes(value));
    if is_excluded == excluded {
        return Ok(false);
    }
    let value = if excluded { json!("true") } else { json!(null) };
    let patch = json!({"metadata": {"labels": {LABEL_EXCLUDE_NODE: value}}});
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(refused)?;
    Ok(true)
}
