//! Operators at work on a cluster; they may lag behind, and be killed.

use operator_api::VipTable;
use serde_json::json;

pub(super) use super::server::{CLASS, NAMESPACE, Server, key};
use crate::{
    Subject,
    decide::{Action, Next, Note, next},
    index::{Index, Kind, Object, Settings},
};

/// An operator: an index that has seen so much of the log.
pub(super) struct Operator {
    pub(super) index: Index,
    seen: usize,
}

impl Operator {
    /// One that starts now.
    pub(super) fn start(server: &Server, settings: Settings) -> Self {
        let mut index = Index::new(settings);
        index.tick(server.now());
        for kind in Kind::ALL {
            drop(index.reset(kind, Vec::new()));
        }
        // Lists have each Lease once, as it is now.
        for (is_there, object) in &server.log {
            drop(match (is_there, object) {
                (_, Object::Lease(_)) => continue,
                (true, object) => index.apply(object.clone()),
                (false, object) => index.delete(object.clone()),
            });
        }
        for lease in server.leases.values() {
            drop(index.apply(Object::Lease(lease.clone())));
        }
        let seen = server.log.len();
        Self { index, seen }
    }

    /// Hears of the next `most` events.
    pub(super) fn catch_up(&mut self, server: &Server, most: usize) {
        self.index.tick(server.now());
        for (is_there, object) in server.log.iter().skip(self.seen).take(most) {
            let object = object.clone();
            drop(if *is_there {
                self.index.apply(object)
            } else {
                self.index.delete(object)
            });
            self.seen += 1;
        }
    }

    fn subjects(server: &Server) -> Vec<Subject> {
        let mut subjects = vec![Subject::Seed, Subject::NodeSets, Subject::Tunnel];
        subjects.extend(server.announcements.keys().cloned().map(Subject::Announcement));
        subjects.extend(server.services.keys().cloned().map(Subject::Service));
        subjects.extend(server.peers.keys().cloned().map(Subject::Peer));
        subjects.push(Subject::Orphans);
        subjects.extend(server.pools.keys().cloned().map(Subject::Pool));
        subjects
    }
}

/// A cluster with one operator at a time.
pub(super) struct World {
    pub(super) server: Server,
    pub(super) operator: Operator,
    pub(super) settings: Settings,
    /// All writes so far, and the Events that went with them.
    pub(super) actions: Vec<Action>,
    pub(super) notes: Vec<Note>,
    /// Kill the operator after so many writes.
    pub(super) kill_after: Option<usize>,
    lenient: bool,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Settings {
            namespace: NAMESPACE.to_owned(),
            class: CLASS.to_owned(),
            default_class: false,
            service_selector: None,
        })
    }

    pub(super) fn with(settings: Settings) -> Self {
        let mut server = Server::default();
        server.pool(
            "public",
            json!({"addresses": ["203.0.113.10-203.0.113.19", "2001:db8::10-2001:db8::19"]}),
        );
        server.node("worker-1", "10.9.0.1");
        let operator = Operator::start(&server, settings.clone());
        Self {
            server,
            operator,
            settings,
            actions: Vec::new(),
            notes: Vec::new(),
            kill_after: None,
            lenient: false,
        }
    }

    /// As most scenarios begin: an LB node, and everything about the cluster written.
    pub(super) fn ready() -> Self {
        let mut world = Self::new();
        world.server.lb_node("lb-1");
        world.settle();
        world.actions.clear();
        world.notes.clear();
        world
    }

    pub(super) fn next(&self, name: &str) -> Next {
        next(&self.operator.index, &Subject::Service(key(name)), self.server.now())
    }

    /// Works until nothing is left to write, and LB nodes have nothing new. Returns what was written about Services.
    pub(super) fn settle(&mut self) -> Vec<Action> {
        let from = self.actions.len();
        for _ in 0..200 {
            let mut idle = true;
            for subject in Operator::subjects(&self.server) {
                idle &= !self.work(&subject);
            }
            self.server.now += 1;
            idle &= !self.server.program();
            self.operator.catch_up(&self.server, usize::MAX);
            if idle {
                return about_services(&self.actions[from..]);
            }
        }
        panic!("it never ends: {:#?}", &self.actions[self.actions.len() - 4..]);
    }

    /// As [`Self::settle`], after two operators at once: what must hold, holds again only at the end.
    pub(super) fn repair(&mut self) {
        self.lenient = true;
        self.settle();
        // What one that lagged behind wrote for a Service that was gone already is swept when it is old enough.
        self.server.later(61);
        self.settle();
        self.lenient = false;
        self.server.check_claims();
        self.server.check_clients();
    }

    /// Works on one subject until it has nothing to write. Returns whether it had.
    pub(super) fn work(&mut self, subject: &Subject) -> bool {
        for turn in 0..64 {
            self.operator.catch_up(&self.server, usize::MAX);
            let Next::Do(action, notes) = next(&self.operator.index, subject, self.server.now()) else {
                return turn > 0;
            };
            self.server
                .write(&action)
                .unwrap_or_else(|why| panic!("{why}: {action:?}"));
            if !self.lenient {
                self.server.check_claims();
                self.server.check_clients();
            }
            self.actions.push(*action);
            self.notes.extend(notes);
            if self.kill_after == Some(self.actions.len()) {
                self.operator = Operator::start(&self.server, self.settings.clone());
            }
        }
        panic!("{subject:?} never ends: {:#?}", &self.actions[self.actions.len() - 3..]);
    }

    pub(super) fn ingress(&self, name: &str) -> Vec<String> {
        let ingress = super::super::status::ingress(&self.server.services[&key(name)]);
        ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect()
    }

    /// `Status/Reason: message` of a condition.
    pub(super) fn condition(&self, name: &str, kind: &str) -> String {
        let conditions = super::super::conditions::of(&self.server.services[&key(name)]);
        let found = super::super::conditions::find(conditions, kind);
        found.map_or_else(String::new, |is| format!("{}/{}: {}", is.status, is.reason, is.message))
    }

    /// Reasons of all Events so far; they are forgotten.
    pub(super) fn told(&mut self) -> Vec<&'static str> {
        self.notes.drain(..).map(|note| note.reason).collect()
    }

    pub(super) fn table(&self, name: &str) -> Option<&VipTable> {
        self.server.tables.get(&VipTable::name_of("default", name))
    }

    pub(super) fn table_addresses(&self, name: &str) -> Vec<String> {
        let table = self.table(name);
        table
            .map(|table| {
                table
                    .spec
                    .addresses
                    .iter()
                    .map(|address| address.address.clone())
                    .collect()
            })
            .unwrap_or_default()
    }
}

/// Without what is about the cluster and about pools.
pub(super) fn about_services(actions: &[Action]) -> Vec<Action> {
    let is = |action: &&Action| {
        !matches!(
            action,
            Action::ApplyPoolStatus { .. }
                | Action::ApplyPeerStatus { .. }
                | Action::ApplyAnnouncementStatus { .. }
                | Action::ApplyTunnel(_)
                | Action::ApplyNodeSet(_)
                | Action::CreateSeed
        )
    };
    actions.iter().filter(is).cloned().collect()
}
