//! A node is taken out of the cluster's load balancing, or put back: desired state, which all LB nodes follow.
//!
//! By the rights of the person who asks: LB nodes have none to nodes.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use operator_api::{ANNOTATION_DRAIN_DEADLINE, LABEL_EXCLUDE_NODE, excludes};
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

/// What a node shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// In load balancing; a deadline is taken away, too.
    In,
    /// Out of it. What lives there is given up at the deadline; without one, one that it has stays.
    Out {
        /// By everybody's clock.
        deadline: Option<Timestamp>,
    },
}

/// What a node is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it had to be written.
    pub changed: bool,
    /// When what lives there is given up.
    pub deadline: Option<Timestamp>,
}

/// Sets or takes away the label that excludes a node from load balancing, and the annotation with its deadline.
///
/// # Errors
///
/// No way to the API server, no such node, or no right to patch it.
pub async fn exclude(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
    node: &str,
    wish: Wish,
) -> Result<Outcome, ExcludeError> {
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
    let annotations = found.metadata.annotations.unwrap_or_default();
    let said = annotations.get(ANNOTATION_DRAIN_DEADLINE);
    let known: Option<Timestamp> = said.and_then(|time| time.parse().ok());
    let (shall_be_excluded, deadline) = match wish {
        Wish::In => (false, None),
        // One of a drain that has ended is none of this one's.
        Wish::Out { deadline } => (true, deadline.or(known.filter(|_| is_excluded))),
    };
    let is_as_wished = is_excluded == shall_be_excluded && known == deadline && said.is_some() == deadline.is_some();
    if is_as_wished {
        let changed = false;
        return Ok(Outcome { changed, deadline });
    }
    let mut metadata = json!({"annotations": {ANNOTATION_DRAIN_DEADLINE: deadline.map(|time| time.to_string())}});
    if is_excluded != shall_be_excluded {
        let value = if shall_be_excluded { json!("true") } else { json!(null) };
        metadata["labels"] = json!({LABEL_EXCLUDE_NODE: value});
    }
    let patch = json!({"metadata": metadata});
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(refused)?;
    let changed = true;
    Ok(Outcome { changed, deadline })
}
