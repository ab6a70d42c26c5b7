//! `TunnelConfig`.

use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::schema::NameRule;

/// What its name must be, which is a rule of the whole object.
pub(crate) const NAMED: NameRule = NameRule {
    rule: "self.metadata.name == 'default'",
    message: "there is one, named default",
};

/// What worker nodes accept by tunnel. It changes only when an LB node joins or leaves, or a pool is edited.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "TunnelConfig",
    shortname = "vtunnel",
    category = "vipline",
    namespaced,
    derive = "PartialEq",
    doc = "What worker nodes accept by tunnel. Written by the operator only.",
    printcolumn = r#"{"name":"Sources","type":"string","jsonPath":".spec.sources"}"#,
    printcolumn = r#"{"name":"VIP-Prefixes","type":"string","jsonPath":".spec.vipPrefixes"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct TunnelConfigSpec {
    /// Outer sources: addresses or prefixes of LB nodes, as CIDR blocks, sorted.
    #[schemars(length(max = 1024), inner(length(min = 3, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(s, isCIDR(s))").message("must be CIDR blocks"))]
    pub sources: Vec<String>,
    /// Inner destinations: all pools' addresses and all addresses in use, as CIDR blocks, sorted, without overlap.
    #[schemars(length(max = 4096), inner(length(min = 3, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(p, isCIDR(p))").message("must be CIDR blocks"))]
    pub vip_prefixes: Vec<String>,
}
