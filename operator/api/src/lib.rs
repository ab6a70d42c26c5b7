//! The `vipline.dev/v1alpha1` custom resource types, shared by the operator and the LB node.
//!
//! Never depends on the data plane: these types are the contract between the two programs. The types themselves come with the
//! operator; until then the room holds the names that everything of Vipline in Kubernetes goes by.

#![forbid(unsafe_code)]

/// API group of all custom resources.
pub const GROUP: &str = "vipline.dev";
/// Version of all custom resources.
pub const VERSION: &str = "v1alpha1";
/// `spec.loadBalancerClass` of Services that are ours.
pub const LOAD_BALANCER_CLASS: &str = "vipline.dev/xdp";
/// Prefix of annotations and of conditions of our own.
pub const PREFIX: &str = "vipline.dev/";
