//! What the cluster wants of this LB node itself: that it gives its VIP addresses away. By a label of its LbNode or of its Node, or by
//! the autoscaler's taint.

use k8s_openapi::{
    api::core::v1::{Node, Taint},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use operator_api::{ANNOTATION_DRAIN_DEADLINE, LABEL_DRAIN, TAINT_TO_BE_DELETED, excludes};

/// What it wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// It is to be drained.
    pub drained: bool,
    /// When it counts as left, whatever still comes: seconds since 1970. The later of two.
    pub deadline: Option<u64>,
}

impl Wish {
    /// As its objects say it.
    pub(super) fn of(lb_node: Option<&ObjectMeta>, node: Option<&Node>) -> Self {
        let taints = node.and_then(|node| node.spec.as_ref()?.taints.as_deref());
        let is_to_go = |taint: &Taint| taint.key == TAINT_TO_BE_DELETED;
        let metadata = || lb_node.into_iter().chain(node.map(|node| &node.metadata));
        let is_labelled = |metadata: &ObjectMeta| {
            let label = metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_DRAIN));
            label.is_some_and(|value| excludes(value))
        };
        let drained = metadata().any(is_labelled) || taints.unwrap_or_default().iter().any(is_to_go);
        let deadline = |metadata: &ObjectMeta| -> Option<u64> {
            let text = metadata.annotations.as_ref()?.get(ANNOTATION_DRAIN_DEADLINE)?;
            let time: jiff::Timestamp = text.parse().ok()?;
            u64::try_from(time.as_second()).ok()
        };
        Self {
            drained,
            deadline: metadata().filter_map(deadline).max().filter(|_| drained),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wish(lb_node: Value, node: Option<Value>) -> Wish {
        let lb_node: ObjectMeta = serde_json::from_value(lb_node).unwrap();
        let node: Option<Node> = node.map(|node| serde_json::from_value(node).unwrap());
        Wish::of(Some(&lb_node), node.as_ref())
    }

    #[test]
    fn either_label_or_the_autoscalers_taint_drains_and_false_does_not() {
        let label = |value: &str| json!({"labels": {"vipline.dev/drain": value}});
        let node = |metadata: Value, taint: &str| json!({"metadata": metadata, "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]}});
        assert_eq!(Wish::of(None, None), Wish::default());
        assert!(!wish(json!({}), Some(node(json!({}), "another"))).drained);
        for value in ["", "true", "yes"] {
            assert!(wish(label(value), None).drained, "{value}");
            assert!(wish(json!({}), Some(node(label(value), "another"))).drained, "{value}");
        }
        assert!(!wish(label("false"), Some(node(label("0"), "another"))).drained);
        assert!(wish(json!({}), Some(node(json!({}), "ToBeDeletedByClusterAutoscaler"))).drained);
    }

    #[test]
    fn a_deadline_is_a_time_and_counts_only_of_who_is_drained() {
        let at = |text: &str| json!({"annotations": {"vipline.dev/drain-deadline": text}, "labels": {"vipline.dev/drain": ""}});
        assert_eq!(wish(at("1970-01-01T00:01:00Z"), None).deadline, Some(60));
        for nonsense in ["soon", "1969-01-01T00:00:00Z", ""] {
            assert_eq!(
                wish(at(nonsense), None),
                Wish {
                    drained: true,
                    deadline: None
                },
                "{nonsense}"
            );
        }
        let alone = json!({"annotations": {"vipline.dev/drain-deadline": "1970-01-01T00:01:00Z"}});
        assert_eq!(wish(alone, None), Wish::default());
    }
}
