//! What the thread does: takes in what is heard, hands the daemon what is new, says and keeps how far that is.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use jiff::{Timestamp, Unit};
use kube::Client;
use operator_api::{BGP_SECRET, Programmed, SEED_SECRET, TUNNEL_CONFIG};
use tokio::{
    sync::{mpsc, watch as latest},
    time::sleep_until,
};

use super::{
    super::{
        announce::{Announcing, Part, Said},
        announcing,
        cache::{Cache, Origin},
        client::KubeSettings,
        index::{Failing, Index, Own, Revisions, TableError},
        report::{self, Reporter, Say},
        seed::Seeds,
        transits::Transits,
        watch::{Kind, Told},
        wish::Wish,
    },
    Awaited, Standing, Update, Word,
    listen::{Heard, listen},
    lock, note_away,
};

/// How long the API server has at a start before what the cache says is taken.
const HEAD_START: Duration = Duration::from_secs(5);
/// Events that come within this time are one change.
const GATHER: Duration = Duration::from_millis(2);
/// Least time between two writes of the cache.
const CACHE_GAP: Duration = Duration::from_secs(10);
/// How often what the maps refused is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// Events on their way from the watches.
const EVENTS: usize = 4096;

pub(super) struct Agent {
    settings: KubeSettings,
    origin: Origin,
    index: Index,
    seeds: Seeds,
    updates: mpsc::Sender<Update>,
    standing: Arc<Mutex<Standing>>,
    /// When it began, by two clocks.
    start: Instant,
    began: Timestamp,
    sources: Vec<String>,
    /// Lists of tables and of node sets have come.
    listed: (bool, bool),
    /// The cache had something to serve.
    recalled: bool,
    serving: bool,
    /// When the events came that no update has taken yet.
    since: Vec<Instant>,
    /// What the daemon is writing.
    in_flight: Option<(u64, Revisions, Failing)>,
    /// The sequence that it was given last; `None`: it shall get one in any case.
    given: Option<(u64, u64)>,
    programmed: Programmed,
    transits: Transits,
    /// What of announcing is watched, what that asks of this node, and how often that has changed.
    watched: Announcing,
    said: Arc<Said>,
    said_sequence: u64,
    /// What this node says of announcing.
    announcing: Option<operator_api::Announcing>,
    password_error: Option<String>,
    failing: Failing,
    trouble: Option<String>,
    seed_error: Option<String>,
    alarmed: Option<String>,
    unsaved: bool,
}

/// Most times of events that an update carries: a list of ten thousand is one event.
const MAX_SINCE: usize = 4096;

impl Agent {
    pub(super) fn new(
        settings: KubeSettings,
        origin: Origin,
        own: Own,
        sources: Vec<String>,
        updates: mpsc::Sender<Update>,
        standing: Arc<Mutex<Standing>>,
    ) -> Self {
        let mut agent = Self {
            index: Index::new(own),
            seeds: Seeds::default(),
            settings,
            origin,
            updates,
            standing,
            start: Instant::now(),
            began: Timestamp::now(),
            sources,
            listed: (false, false),
            recalled: false,
            serving: false,
            since: Vec::new(),
            in_flight: None,
            given: None,
            programmed: Programmed::default(),
            transits: Transits::default(),
            watched: Announcing::default(),
            said: Arc::default(),
            said_sequence: 0,
            announcing: None,
            password_error: None,
            failing: Arc::default(),
            trouble: None,
            seed_error: None,
            alarmed: None,
            unsaved: false,
        };
        agent.recall();
        agent
    }

    /// Takes in what the cache says; lists replace it, as they would replace what was watched.
    fn recall(&mut self) {
        let path = &self.settings.cache;
        match Cache::read(path, &self.origin) {
            Ok(Some(recalled)) => {
                let (tables, chunks) = (recalled.tables.len(), recalled.node_sets.len());
                tracing::info!(tables, chunks, path = %path.display(), "what was served last is known from the cache");
                self.seeds = Seeds::cached(recalled.seed);
                self.index.reset_node_sets(recalled.node_sets);
                self.index.reset_tables(recalled.tables, self.start.elapsed());
                if let Some(tunnel) = recalled.tunnel {
                    drop(self.index.apply_tunnel(tunnel));
                }
                self.index.forget_revisions();
                self.watched = Announcing::recall(recalled.announcing);
                self.look_at_announcing(true);
                self.recalled = true;
            }
            Ok(None) => {}
            Err(error) => tracing::error!("the cache is not used: {error}"),
        }
    }

    pub(super) async fn run(
        mut self,
        client: Client,
        mut words: mpsc::UnboundedReceiver<Word>,
        wishes: latest::Sender<Wish>,
    ) {
        let (heard_sender, mut heard) = mpsc::channel(EVENTS);
        listen(&client, &self.settings.namespace, heard_sender);
        let (say, says) = latest::channel(self.say());
        let (namespace, node) = (&self.settings.namespace, Arc::clone(&self.settings.node));
        let reporter = Reporter::new(&client, namespace, node, wishes);
        tokio::spawn(reporter.run(says));
        let mut head_start = Some(self.start + HEAD_START);
        let mut saved = self.start;
        let mut tried = self.start;
        // What it waits for is said from the beginning.
        self.step(false);
        loop {
            let now = Instant::now();
            let held_until = self.index.held_until().map(|until| self.start + until);
            let deletions_due = self.index.deletions_due().map(|due| self.start + due);
            let save_at = self.unsaved.then_some(saved + CACHE_GAP);
            let retry_at = self.wants_retry().then_some(tried + TRY_AGAIN);
            let wakes = [head_start, held_until, deletions_due, save_at, retry_at];
            let wake = wakes.into_iter().flatten().min();
            let wake = wake.unwrap_or(now + Duration::from_secs(3600));
            tokio::select! {
                word = words.recv() => match word {
                    Some(word) => self.heed(word),
                    None => break,
                },
                event = heard.recv() => {
                    if let Some(event) = event {
                        self.take(event);
                    }
                    // Whatever else is on its way.
                    let gathered = tokio::time::Instant::now() + GATHER;
                    while let Ok(Some(event)) = tokio::time::timeout_at(gathered, heard.recv()).await {
                        self.take(event);
                    }
                }
                () = sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            if head_start.is_some_and(|at| now >= at) {
                head_start = None;
            }
            if held_until.is_some_and(|at| now >= at) {
                let tables = self.index.let_go();
                tracing::warn!(tables, "what was dropped at once was held long enough: it goes now");
            }
            if deletions_due.is_some_and(|at| now >= at) {
                self.index.carry_out_deletions(now.duration_since(self.start));
            }
            if retry_at.is_some_and(|at| now >= at) {
                tried = now;
                self.trouble = None;
                self.given = None;
                self.index.try_refused_again();
            }
            self.step(head_start.is_none());
            if self.unsaved && (now >= saved + CACHE_GAP) && self.in_flight.is_none() {
                saved = now;
                self.save().await;
            }
            self.publish(&say);
        }
        if self.unsaved {
            self.save().await;
        }
    }

    fn take(&mut self, heard: Heard) {
        let now = self.start.elapsed();
        match heard {
            Heard::Tables(told, at) => {
                self.note(Kind::Tables, &told, at);
                let before = self.index.held();
                match told {
                    Told::List(list) => {
                        self.index.reset_tables(list, now);
                        self.listed.0 = true;
                    }
                    Told::Apply(table) => self.index.apply_table(table),
                    Told::Delete(name, revision) => self.index.delete_table(&name, revision, now),
                    Told::Away(_) | Told::Back => {}
                }
                if let (None, Some(held)) = (before, self.index.held()) {
                    tracing::error!(
                        "ALARM: {} of {} VIPs are gone from the API server at once: they are kept for 5 minutes; `vipline kube \
                         accept` lets them go now",
                        held.vips,
                        held.of
                    );
                }
            }
            Heard::NodeSets(told, at) => {
                self.note(Kind::NodeSets, &told, at);
                match told {
                    Told::List(list) => {
                        self.index.reset_node_sets(list);
                        self.listed.1 = true;
                    }
                    Told::Apply(chunk) => self.index.apply_node_set(chunk),
                    Told::Delete(name, revision) => self.index.delete_node_set(&name, revision),
                    Told::Away(_) | Told::Back => {}
                }
            }
            Heard::Tunnel(told, at) => {
                self.note(Kind::Tunnel, &told, at);
                let objects = match told {
                    Told::List(list) => list,
                    Told::Apply(object) => vec![object],
                    Told::Delete(name, _) if name == TUNNEL_CONFIG => {
                        tracing::warn!("the TunnelConfig was deleted: what it said last holds");
                        Vec::new()
                    }
                    Told::Delete(..) | Told::Away(_) | Told::Back => Vec::new(),
                };
                for object in objects.into_iter().filter(|object| *object.name == *TUNNEL_CONFIG) {
                    let applied = match object.spec {
                        Ok(spec) => self.index.apply_tunnel(spec),
                        Err(why) => Err(TableError::Unreadable { why }),
                    };
                    if let Err(error) = applied {
                        tracing::error!("the TunnelConfig changes nothing: {error}");
                    }
                }
            }
            Heard::Announcements(told, at) => {
                self.note(Kind::Announcements, &told, at);
                let news = self
                    .watched
                    .take(Part::Announcements, told, Announcing::put_announcement);
                self.look_at_announcing(news);
            }
            Heard::Peers(told, at) => {
                self.note(Kind::Peers, &told, at);
                let news = self.watched.take(Part::Peers, told, Announcing::put_peer);
                self.look_at_announcing(news);
            }
            Heard::LbNodes(told, at) => {
                self.note(Kind::LbNodes, &told, at);
                let news = self.watched.take(Part::Nodes, told, Announcing::put_node);
                self.look_at_announcing(news);
            }
            Heard::Passwords(Ok(passwords)) => {
                self.password_error = None;
                let news = self.watched.set_passwords(passwords);
                self.look_at_announcing(news);
            }
            Heard::Passwords(Err(why)) => {
                if self.password_error.as_ref() != Some(&why) {
                    tracing::warn!("the Secret {BGP_SECRET} cannot be read, what it said last holds: {why}");
                }
                self.password_error = Some(why);
            }
            Heard::Seed(Ok(text)) => {
                self.seed_error = None;
                self.seeds.heard(&text);
            }
            Heard::Seed(Err(why)) => {
                if self.seed_error.as_ref() != Some(&why) {
                    tracing::warn!("the Secret {SEED_SECRET} cannot be read: {why}");
                }
                self.seed_error = Some(why);
            }
        }
    }

    /// What is watched of announcing may have changed.
    fn look_at_announcing(&mut self, is_news: bool) {
        if !is_news {
            return;
        }
        let said = self.watched.said(&self.settings.node);
        if *self.said == said {
            return;
        }
        for fault in said.faults.iter().filter(|fault| !self.said.faults.contains(fault)) {
            tracing::error!("{fault}");
        }
        self.said = Arc::new(said);
        self.said_sequence += 1;
        self.unsaved = true;
    }

    /// Keeps the times of events, and what cannot be learnt.
    fn note<S>(&mut self, kind: Kind, told: &Told<S>, at: tokio::time::Instant) {
        let is_change = matches!(told, Told::List(_) | Told::Apply(_) | Told::Delete(..));
        if is_change && self.since.len() < MAX_SINCE {
            self.since.push(at.into_std());
        }
        note_away(&self.standing, kind, told, Kind::ALL.len());
    }

    fn heed(&mut self, word: Word) {
        match word {
            Word::Programmed {
                sequence,
                vips,
                backends,
            } => {
                if let Some((flown, revisions, failing)) = self.in_flight.take() {
                    debug_assert_eq!(flown, sequence);
                    self.trouble = None;
                    self.programmed.vips = u32::try_from(vips).unwrap_or(u32::MAX);
                    self.programmed.backends = u32::try_from(backends).unwrap_or(u32::MAX);
                    self.has_come_to(sequence, revisions, failing);
                }
            }
            Word::Refused { vip, why } => {
                self.in_flight = None;
                let known = vip.is_some_and(|vip| self.index.refuse(vip, &why));
                if !known {
                    self.trouble = Some(why);
                }
            }
            Word::Lively(lively) => self.transits.are_lively(lively),
            Word::Own { sources, own } => {
                self.sources = sources;
                self.index.set_own(own);
            }
            Word::Announcing(said) => self.announcing = Some(announcing::bounded(*said)),
            Word::Accept => {
                let tables = self.index.let_go();
                tracing::warn!(tables, "what was dropped at once was accepted: it goes now");
            }
        }
    }

    /// The maps say what the index said at this sequence.
    fn has_come_to(&mut self, sequence: u64, revisions: Revisions, failing: Failing) {
        self.index.programmed(sequence);
        let text = |revision: u64| {
            if revision == 0 {
                String::new()
            } else {
                revision.to_string()
            }
        };
        self.programmed.tables = text(revisions.tables);
        self.programmed.node_sets = text(revisions.node_sets);
        self.programmed.failing_count = u32::try_from(failing.len()).unwrap_or(u32::MAX);
        if !Arc::ptr_eq(&failing, &self.failing) {
            for (name, why) in failing
                .iter()
                .filter(|(name, why)| self.failing.get(*name) != Some(*why))
                .take(16)
            {
                tracing::error!(table = %name, "table fails, what of it was in the maps stays: {why}");
            }
            self.programmed.failing = report::failing(failing.iter().map(|(name, why)| (name, why.to_string())));
            self.failing = failing;
        }
        self.unsaved = true;
        let mut standing = lock(&self.standing);
        standing.revisions = revisions;
        standing.failing = Arc::clone(&self.failing);
    }

    fn wants_retry(&self) -> bool {
        let is_refused = |why: &TableError| matches!(why, TableError::Refused { .. });
        self.in_flight.is_none() && (self.trouble.is_some() || self.index.failing().values().any(is_refused))
    }

    /// What serving waits for.
    fn waiting(&self, head_start_over: bool) -> Vec<(Awaited, String)> {
        let mut waiting = Vec::new();
        let is_known = (self.listed.0 && self.listed.1) || (head_start_over && self.recalled);
        if !is_known {
            waiting.push((Awaited::Lists, "the first lists of VipTables and NodeSets".to_owned()));
        }
        match self.index.fingerprint() {
            None => {
                let missing: Vec<String> = self
                    .index
                    .waiting()
                    .map(|(set, why)| format!(" ({set}: {why})"))
                    .collect();
                waiting.push((Awaited::NodeSet, format!("a complete NodeSet{}", missing.concat())));
            }
            Some(_) if self.seeds.in_use().is_none() => {
                let why = self.seed_error.as_ref().map(|why| format!(": {why}"));
                let what = format!("the seed in the Secret {SEED_SECRET}{}", why.unwrap_or_default());
                waiting.push((Awaited::Seed, what));
            }
            Some(_) => {}
        }
        waiting
    }

    /// Hands the daemon what is new, unless it is busy.
    fn step(&mut self, head_start_over: bool) {
        if let Some(pinned) = self.index.fingerprint().cloned() {
            self.seeds.settle(&pinned);
        }
        if !self.serving {
            let waiting = self.waiting(head_start_over);
            self.serving = waiting.is_empty();
            if self.serving && !(self.listed.0 && self.listed.1) {
                tracing::warn!("the API server has said nothing yet: what was served last is served, from the cache");
            }
            lock(&self.standing).waiting.are(Instant::now(), waiting);
        }
        let (true, None, Some(seed)) = (self.serving, &self.in_flight, self.seeds.in_use()) else {
            return;
        };
        let sequence = self.index.sequence();
        let both = (sequence, self.said_sequence);
        if self.given == Some(both) && self.trouble.is_none() {
            if self.unsaid() {
                // Nothing of it is about the maps.
                self.has_come_to(sequence, self.index.revisions(), Arc::clone(self.index.failing()));
            }
            self.since.clear();
            return;
        }
        if self.given == Some(both) {
            return;
        }
        let update = Update {
            snapshot: self.index.snapshot(),
            said: Arc::clone(&self.said),
            seed: seed.key(),
            since: std::mem::take(&mut self.since),
        };
        self.in_flight = Some((
            sequence,
            update.snapshot.revisions,
            Arc::clone(&update.snapshot.failing),
        ));
        self.given = Some(both);
        // There is room: the one before it was answered. A daemon that is gone needs nothing.
        drop(self.updates.try_send(update));
    }

    /// Whether the revisions moved without anything for the maps.
    fn unsaid(&self) -> bool {
        lock(&self.standing).revisions != self.index.revisions()
    }

    async fn save(&mut self) {
        self.unsaved = false;
        let cache = Cache::new(
            &self.origin,
            self.seeds.in_use(),
            self.index.kept(),
            self.watched.kept(),
        );
        let path = self.settings.cache.clone();
        let written = tokio::task::spawn_blocking(move || cache.write(&path)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("the cache is not written: {error}"),
            Err(error) => tracing::error!("the cache is not written: {error}"),
        }
    }

    fn say(&self) -> Say {
        let held = self.index.held();
        let alarm = self.seeds.alarm(self.index.fingerprint().map(|pinned| &**pinned));
        let (trouble, message) = if let Some(held) = held {
            let text = format!(
                "{} of {} VIPs are gone from the API server at once, and held; `vipline kube accept` on this node lets them go",
                held.vips, held.of
            );
            (Some("MassDropHeld"), text)
        } else if let Some(alarm) = alarm {
            (Some("SeedRefused"), alarm)
        } else if let Some(trouble) = &self.trouble {
            (Some("MapsRefuse"), trouble.clone())
        } else if !self.serving {
            let waiting: Vec<String> = self.waiting(false).into_iter().map(|(_, what)| what).collect();
            (Some("Waiting"), format!("waits for {}", waiting.join("; ")))
        } else if self.programmed.failing_count > 0 {
            (
                None,
                format!("{} tables fail, the others are served", self.programmed.failing_count),
            )
        } else {
            (None, "serves what it was told".to_owned())
        };
        let message = message + &self.away();
        Say {
            sources: self.sources.clone(),
            programmed: self.programmed.clone(),
            transits: self.transits.said().clone(),
            announcing: self.announcing.clone(),
            trouble,
            message,
        }
    }

    /// What is not heard of at the moment, and how old what is known of it is. The time is absolute: the text is written when it
    /// changes.
    fn away(&self) -> String {
        let standing = lock(&self.standing);
        let away = standing.away.iter().map(|(kind, (since, why))| {
            let since = self.began + since.duration_since(self.start);
            let since = since.round(Unit::Second).unwrap_or(since);
            format!("; {kind} cannot be watched since {since}: {why}")
        });
        away.collect()
    }

    fn publish(&mut self, to: &latest::Sender<Say>) {
        let alarm = self.seeds.alarm(self.index.fingerprint().map(|pinned| &**pinned));
        if alarm != self.alarmed {
            if let Some(alarm) = &alarm {
                tracing::error!("ALARM: {alarm}");
            }
            self.alarmed.clone_from(&alarm);
        }
        let mut standing = lock(&self.standing);
        standing.seed_alarm = alarm;
        standing.trouble.clone_from(&self.trouble);
        standing.from_cache = self.serving && !(self.listed.0 && self.listed.1);
        let until = self.index.held_until().map(|until| self.start + until);
        standing.held = self
            .index
            .held()
            .zip(until)
            .map(|(held, until)| (held.vips, held.of, until));
        drop(standing);
        self.transits.look_at(&self.index);
        let say = self.say();
        to.send_if_modified(|before| {
            let other = *before != say;
            if other {
                *before = say;
            }
            other
        });
    }
}
