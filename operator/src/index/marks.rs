//! What of ours is on a Service, and what is not.
//!
//! Never takes for ours what another provider may have put there: on a Service of another class the standard finalizer is ours
//! only beside our annotation, which is written with it, and the standard condition and the addresses never are.

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};
use operator_api::{ANNOTATION_ALLOCATED_FROM, FINALIZER, FINALIZER_EXTERNAL_IPS, PREFIX};

/// The standard condition of a Service with ports that are not served.
pub(crate) const CONDITION_PORTS: &str = "LoadBalancerPortsError";

/// Whether a Service asks for a load balancer of another class than `class`.
pub(crate) fn is_of_other_class(service: &Service, class: &str) -> bool {
    let spec = service.spec.as_ref();
    let asked = spec.and_then(|spec| spec.load_balancer_class.as_deref());
    spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer") && asked.is_some_and(|asked| asked != class)
}

/// Whether it has our annotation.
pub(crate) fn is_annotated(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(ANNOTATION_ALLOCATED_FROM))
}

/// Its finalizers without ours.
pub(crate) fn finalizers_of_others(service: &Service, other_class: bool) -> Vec<String> {
    let standard_is_ours = !other_class || is_annotated(service);
    let finalizers = service.metadata.finalizers.as_deref().unwrap_or_default();
    let is_ours = |name: &String| name == FINALIZER_EXTERNAL_IPS || (name == FINALIZER && standard_is_ours);
    finalizers.iter().filter(|name| !is_ours(name)).cloned().collect()
}

/// Its conditions without ours.
pub(crate) fn conditions_of_others(service: &Service, other_class: bool) -> Vec<Condition> {
    let status = service.status.as_ref();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let is_ours = |kind: &str| kind.starts_with(PREFIX) || (kind == CONDITION_PORTS && !other_class);
    conditions
        .iter()
        .filter(|condition| !is_ours(&condition.type_))
        .cloned()
        .collect()
}
