//! WATCH: a line of JSON for each change, for as long as the client stays.
//!
//! Never skips a change: a watch that cannot know of all of them ends with 410.

use std::sync::Arc;
use std::time::Duration;

use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::answer::{self, Answer};
use crate::failure::{Cause, Failure};
use crate::list::{too_large, version};
use crate::paths::{Query, Target};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::server::Shared;
use crate::store::{Change, ChangeKind, Stored};
use crate::view::View;

/// Lines that may wait for a slow client.
const QUEUE: usize = 256;

struct Watch {
    shared: Arc<Shared>,
    resource: Arc<Resource>,
    namespace: String,
    selector: Selector,
    view: View,
    bookmarks: bool,
    /// All changes up to here were sent.
    seen: u64,
    dropped: tokio::sync::watch::Receiver<u64>,
}

/// Starts a watch. `expire`: its first event says 410.
pub(crate) fn start(
    shared: &Arc<Shared>,
    resource: &Arc<Resource>,
    target: &Target,
    query: &Query,
    view: View,
    expire: bool,
) -> Result<Response<Answer>, Failure> {
    let mut fields = query.value("fieldSelector").unwrap_or("").to_owned();
    if !target.name.is_empty() {
        fields = format!("metadata.name={}", target.name);
    }
    let selector = Selector::parse(query.value("labelSelector"), Some(&fields), resource)?;
    let initial = query.flag("sendInitialEvents");
    check_options(query, initial)?;
    let since = version(query)?;
    let timeout = query
        .value("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(1800);
    let mut watch = Watch {
        shared: Arc::clone(shared),
        resource: Arc::clone(resource),
        namespace: target.namespace.clone(),
        selector,
        view,
        bookmarks: query.flag("allowWatchBookmarks"),
        seen: 0,
        dropped: shared.faults.watches_dropped(),
    };
    let mut first = Vec::new();
    {
        let mut state = shared.lock();
        let latest = state.revision;
        if since.is_some_and(|since| since > latest) {
            return Err(too_large(since.unwrap_or(0), latest));
        }
        if expire {
            let refused = Failure::expired(format!("too old resource version: {} ({latest})", since.unwrap_or(0)));
            first.push(line("ERROR", refused.status().to_string().as_bytes()));
        } else if initial || since.is_none_or(|since| since == 0) {
            watch.seen = latest;
            for (key, stored) in &state.table(&resource.table).objects {
                if watch.covers(&key.0, stored) {
                    first.push(line("ADDED", &view.one(resource, stored)));
                }
            }
            if initial {
                first.push(watch.bookmark(true));
            }
        } else {
            watch.seen = since.unwrap_or(latest);
        }
    }
    let (send, receive) = mpsc::channel(QUEUE);
    tokio::spawn(watch.run(send, first, expire, Duration::from_secs(timeout)));
    Ok(answer::pieces(receive))
}

fn check_options(query: &Query, initial: bool) -> Result<(), Failure> {
    let matching = query.value("resourceVersionMatch");
    let cause = match (query.value("sendInitialEvents"), matching) {
        (Some(_), None) => Cause::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch must be set to NotOlderThan when sendInitialEvents is provided",
        ),
        (Some(_), Some("NotOlderThan")) | (None, None) => {
            if !initial || query.flag("allowWatchBookmarks") {
                return Ok(());
            }
            Cause::forbidden(
                "sendInitialEvents",
                "sendInitialEvents requires setting allowWatchBookmarks to true",
            )
        }
        (Some(_), Some(other)) => Cause::not_supported("resourceVersionMatch", &other.into(), &["NotOlderThan"]),
        (None, Some(_)) => Cause::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
    };
    Err(Failure::invalid("meta.k8s.io", "ListOptions", "", &[cause]))
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = format!(r#"{{"type":"{kind}","object":"#).into_bytes();
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}

impl Watch {
    fn covers(&self, namespace: &str, stored: &Stored) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace) && self.selector.matches(&stored.value)
    }

    fn bookmark(&self, ends_initial: bool) -> Bytes {
        let mut object = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": self.seen.to_string(), "creationTimestamp": Value::Null}});
        if ends_initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        line("BOOKMARK", object.to_string().as_bytes())
    }

    /// What a change is to this watch: an object may come into its sight or leave it.
    fn line_of(&self, change: &Change) -> Option<Bytes> {
        let namespace = &change.key.0;
        let was = change
            .previous
            .as_ref()
            .is_some_and(|previous| self.covers(namespace, previous));
        let is = change.kind != ChangeKind::Deleted && self.covers(namespace, &change.object);
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        if kind == "DELETED" && change.kind != ChangeKind::Deleted {
            // Out of sight, not gone: told with the object as it was, and the revision of the change.
            let mut value = change.previous.as_ref()?.value.clone();
            value["metadata"]["resourceVersion"] = change.revision.to_string().into();
            let stored = Stored::apart(value, change.revision);
            return Some(line(kind, &self.view.one(&self.resource, &stored)));
        }
        Some(line(kind, &self.view.one(&self.resource, &change.object)))
    }

    /// Lines that are due, and whether the watch is over after them.
    fn due(&mut self) -> (Vec<Bytes>, bool) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let latest = state.revision;
        let served = state
            .registry
            .find(&self.resource.group, &self.resource.version, &self.resource.plural)
            .is_some();
        let table = state.table(&self.resource.table);
        let changes: Vec<Arc<Change>> = match table.since(self.seen) {
            Ok(changes) => changes.cloned().collect(),
            Err(expired) => return (vec![line("ERROR", expired.status().to_string().as_bytes())], true),
        };
        drop(state);
        self.seen = latest;
        (
            changes.iter().filter_map(|change| self.line_of(change)).collect(),
            !served,
        )
    }

    async fn run(mut self, send: mpsc::Sender<Bytes>, first: Vec<Bytes>, expired: bool, timeout: Duration) {
        let mut changed = self.shared.subscribe();
        let mut dropped = self.dropped.clone();
        let end = Instant::now() + timeout;
        let mut bookmark_at = Instant::now() + self.shared.bookmark_interval;
        for line in first {
            if send.send(line).await.is_err() {
                return;
            }
        }
        if expired {
            return;
        }
        loop {
            changed.borrow_and_update();
            let (lines, over) = self.due();
            for line in lines {
                tokio::select! {
                    sent = send.send(line) => if sent.is_err() { return },
                    _ended = dropped.changed() => return,
                }
            }
            if over {
                return;
            }
            tokio::select! {
                moved = changed.changed() => if moved.is_err() { return },
                _ended = dropped.changed() => return,
                () = send.closed() => return,
                () = sleep_until(end) => {
                    if self.bookmarks && self.shared.faults.bookmarks() {
                        let _gone = send.send(self.bookmark(false)).await;
                    }
                    return;
                }
                () = sleep_until(bookmark_at) => {
                    bookmark_at = Instant::now() + self.shared.bookmark_interval;
                    if self.bookmarks && self.shared.faults.bookmarks() && send.send(self.bookmark(false)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
