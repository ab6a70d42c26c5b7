//! What an LB node's daemon shows to Prometheus, and how a scrape reaches it.
//!
//! Never decides anything, and never lets a scrape disturb the daemon's loop: a thread of its own answers. It asks the loop for
//! [`Facts`] at most once in [`KEPT`], which costs the loop microseconds (a millisecond where tables have changed), and reads
//! counters and writes the text by itself.
//!
//! | file | what it is |
//! |---|---|
//! | `facts` | what the loop says |
//! | `meters` | counters of a loaded program, read beside the loop |
//! | `names` | all metrics: names, labels, what they mean |
//! | `page` | facts and counters as text |

mod facts;
mod meters;
mod names;
mod page;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use exposition::Answer;
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

pub use self::{
    facts::{BgpFacts, ConfigFacts, Facts, FlowFacts, HealthFacts, SlowFacts, TableFacts, WorkerFacts},
    meters::{Counted, MAX_BACKEND_SERIES, MAX_VIP_SERIES, Meters, Place},
    names::{METRICS, Metric, Shape},
    page::text,
};

/// How long an answer is given again: however many scrape, the loop is asked no more often.
pub const KEPT: Duration = Duration::from_secs(1);
/// Longest wait for the loop, which may be waiting for next hops.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often counters are read anew because tables changed meanwhile.
const TRIES: usize = 5;
/// How often an address that cannot be listened at is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// The loop's end of the thread.
pub struct Metrics {
    questions: mpsc::Receiver<Question>,
    listen: watch::Sender<Option<SocketAddr>>,
    trouble: Arc<StdMutex<Option<String>>>,
}

/// A scrape wants to know.
pub struct Question(oneshot::Sender<Facts>);

impl Question {
    /// Answers.
    pub fn with(self, facts: Facts) {
        // A client that has gone away needs no answer.
        drop(self.0.send(facts));
    }
}

impl Metrics {
    /// Starts the thread, which listens at `listen` if that is somewhere. That it cannot is said, tried again, and no error: traffic
    /// matters more.
    ///
    /// # Errors
    ///
    /// When there can be no further thread.
    pub fn start(listen: Option<SocketAddr>) -> std::io::Result<Self> {
        let (sender, questions) = mpsc::channel(1);
        let (listen, wanted) = watch::channel(listen);
        let trouble = Arc::default();
        let shared = Arc::clone(&trouble);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || runtime.block_on(run(wanted, sender, &shared)))?;
        Ok(Self {
            questions,
            listen,
            trouble,
        })
    }

    /// Listens somewhere else from now on, or nowhere.
    pub fn listen(&self, listen: Option<SocketAddr>) {
        self.listen.send_if_modified(|before| {
            let other = *before != listen;
            *before = listen;
            other
        });
    }

    /// Where it should listen, and why it does not.
    pub fn standing(&self) -> Option<(SocketAddr, Option<String>)> {
        let listen = *self.listen.borrow();
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        listen.map(|listen| (listen, trouble.clone()))
    }

    /// The next question. Nothing is lost when it is dropped while it waits.
    pub async fn next(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }
}

/// Listens where it shall until the loop is gone.
async fn run(
    mut wanted: watch::Receiver<Option<SocketAddr>>,
    ask: mpsc::Sender<Question>,
    trouble: &StdMutex<Option<String>>,
) {
    let page = Arc::new(Page {
        ask,
        last: Mutex::new(None),
    });
    loop {
        let listen = *wanted.borrow_and_update();
        let bound = match listen {
            Some(address) => Some((address, TcpListener::bind(address).await)),
            None => None,
        };
        let error = bound
            .as_ref()
            .and_then(|(_, bound)| bound.as_ref().err().map(ToString::to_string));
        say(trouble, listen, error);
        let changed = match bound {
            None => wanted.changed().await,
            Some((_, Ok(listener))) => {
                let page = Arc::clone(&page);
                let answer = move |path: String| {
                    let page = Arc::clone(&page);
                    async move {
                        match &*path {
                            "/metrics" => Some(page.answer().await),
                            _ => None,
                        }
                    }
                };
                tokio::select! {
                    () = exposition::serve(listener, answer) => Ok(()),
                    changed = wanted.changed() => changed,
                }
            }
            Some((_, Err(_))) => tokio::select! {
                () = sleep(TRY_AGAIN) => Ok(()),
                changed = wanted.changed() => changed,
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Keeps why nothing can be listened at, and says it when it is new.
fn say(trouble: &StdMutex<Option<String>>, listen: Option<SocketAddr>, error: Option<String>) {
    let mut trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner);
    match (listen, &error) {
        (Some(address), Some(error)) if trouble.as_ref() != Some(error) => {
            tracing::error!("metrics: cannot listen at {address}, which is tried again: {error}");
        }
        (Some(address), None) => tracing::info!(%address, "metrics are at /metrics"),
        (Some(_), Some(_)) | (None, _) => {}
    }
    *trouble = error;
}

/// The answer to a scrape, kept for a moment.
struct Page {
    ask: mpsc::Sender<Question>,
    last: Mutex<Option<(Instant, Answer)>>,
}

impl Page {
    /// Others that scrape meanwhile wait, and get the same.
    async fn answer(&self) -> Answer {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < KEPT
        {
            return answer.clone();
        }
        match self.make().await {
            Ok(text) => {
                let answer = Answer::metrics(text);
                *last = Some((Instant::now(), answer.clone()));
                answer
            }
            Err(why) => Answer::unavailable(format!("{why}\n")),
        }
    }

    async fn make(&self) -> Result<String, String> {
        for _ in 0..TRIES {
            let facts = self.facts().await.ok_or("the daemon is busy or stopping")?;
            let counted = match &facts.meters {
                None => None,
                Some(meters) => match meters.read().map_err(|error| error.to_string())? {
                    Some(counted) => Some(counted),
                    // What was read may be of what stood there before.
                    None => continue,
                },
            };
            return text(facts, counted).map_err(|error| error.to_string());
        }
        Err("the tables change faster than counters can be read".to_owned())
    }

    async fn facts(&self) -> Option<Facts> {
        let (sender, facts) = oneshot::channel();
        let asked = async {
            self.ask.send(Question(sender)).await.ok()?;
            facts.await.ok()
        };
        timeout(PATIENCE, asked).await.ok()?
    }
}
