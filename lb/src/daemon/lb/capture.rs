//! `vipline capture` in the main loop: another program for as long as a client listens.
//!
//! Never costs a packet anything while nobody captures: the program that is in place then has no code for it.

use anyhow::Context as _;
use lb_core::desired::VipKey;
use xdp_prog::{
    abi::{BackendIndex, VipIndex, feature},
    verdict::Verdict,
};

use super::{Lb, View};
use crate::{
    cli::report,
    control::{
        Answer, CaptureEnd, CaptureOptions, CaptureStarted, RATE_MAX, Request, SNAPLEN_MAX, SNAPLEN_MIN, VipFilter,
    },
    daemon::{
        capture::{Ended, Handle, Names, Pump, Update, tell_end},
        tables::Tables,
    },
    datapath::{Aim, Attachment, SampleRing, jiffies_per_second},
};

/// The capture there is.
pub(super) struct Capture {
    handle: Handle,
    /// What is asked of the program, but for the VIP's index.
    aim: Aim,
    /// The VIP that the program compares.
    vip: Option<VipKey>,
    hz: u32,
    /// Samples lost by programs that were replaced since it began.
    lost: u64,
}

/// Features that a capture adds to what the configuration asks for.
pub(super) fn features(capture: Option<&Capture>) -> u64 {
    capture.map_or(0, |_| feature::CAPTURE)
}

/// Waits for the end of the capture; forever, where there is none.
pub(super) async fn ended(capture: &mut Option<Capture>) -> Ended {
    match capture {
        Some(capture) => (&mut capture.handle.ended).await.unwrap_or(Ended {
            client: None,
            samples: 0,
            error: Some("the client is gone".to_owned()),
        }),
        None => std::future::pending().await,
    }
}

/// Prepares a program that has been loaded with its tables and is not yet in place; its rings, if there is a capture.
pub(super) fn prepare(capture: Option<&Capture>, tables: &mut Tables) -> anyhow::Result<Option<Vec<SampleRing>>> {
    let Some(capture) = capture else {
        return Ok(None);
    };
    capture.aim(tables)?;
    Ok(Some(tables.balancer.open_rings()?))
}

/// After a program took over from `old`: the thread gets its rings.
pub(super) fn took_over(
    capture: Option<&mut Capture>,
    rings: Option<Vec<SampleRing>>,
    old: &Tables,
    new: &Tables,
    attachments: &[Attachment],
) {
    if let Some(capture) = capture {
        capture.lost = capture.lost.saturating_add(lost(old));
        capture.tell(new, attachments, rings);
    }
}

/// After the tables of the program in place changed: indices mean something else.
pub(super) fn tables_changed(capture: Option<&Capture>, tables: &Tables, attachments: &[Attachment]) {
    if let Some(capture) = capture {
        if let Err(error) = capture.aim(tables) {
            tracing::error!("the capture's filter does not follow the tables: {error}");
        }
        capture.tell(tables, attachments, None);
    }
}

impl Capture {
    fn aim(&self, tables: &Tables) -> anyhow::Result<()> {
        let vip = self.vip.map(|key| tables.planner.vip(&key).map(|vip| vip.index.0));
        let balancer = &tables.balancer;
        match vip {
            None => balancer.aim(&self.aim, self.hz)?,
            Some(Some(index)) => balancer.aim(
                &Aim {
                    vip: Some(index),
                    ..self.aim
                },
                self.hz,
            )?,
            // The VIP went with a reload, and its index may be another's by now; it may come back.
            Some(None) => balancer.aim_at_nothing()?,
        }
        Ok(())
    }

    fn tell(&self, tables: &Tables, attachments: &[Attachment], rings: Option<Vec<SampleRing>>) {
        let update = Update {
            names: names(tables, attachments),
            rings,
        };
        // A thread that has ended needs no names.
        drop(self.handle.updates.send(update));
    }
}

impl Lb {
    /// Starts a capture for the client that asks.
    pub(super) async fn start_capture(&mut self, question: Answer, options: CaptureOptions, view: &mut View) {
        debug_assert!(matches!(question.request, Request::Capture { .. }));
        match self.try_capture(options, view).await {
            Ok((started, pump)) => question.with_more(&started, |client| pump.start(client)),
            Err(error) => question.with::<()>(Err(report(&error))),
        }
    }

    async fn try_capture(
        &mut self,
        options: CaptureOptions,
        view: &mut View,
    ) -> anyhow::Result<(CaptureStarted, Pump)> {
        anyhow::ensure!(
            self.capture.is_none(),
            "a capture is running already, and there can be one at a time: end that one first"
        );
        let mask = Aim::mask(verdicts(&options.reasons)?);
        let vip = options.vip.as_ref().and_then(VipFilter::key);
        if let Some(key) = vip {
            let is_there = self.tables.planner.vip(&key).is_some();
            anyhow::ensure!(is_there, "there is no VIP {key}: `vipline vips` shows them");
        }
        let address = match options.vip {
            Some(VipFilter::Address(address)) => Some(address),
            Some(VipFilter::Vip { .. }) | None => None,
        };
        let snaplen = options.snaplen.clamp(SNAPLEN_MIN, SNAPLEN_MAX);
        let (pump, handle) = Pump::new(address, options.count);
        self.capture = Some(Capture {
            handle,
            aim: Aim {
                verdicts: mask,
                vip: None,
                one_in: options.one_in,
                rate: options.rate.clamp(1, RATE_MAX),
                snaplen,
            },
            vip,
            hz: jiffies_per_second()?,
            lost: 0,
        });
        if let Err(error) = self.reload_program(view).await {
            self.capture = None;
            return Err(error.context("the program for the capture did not take over"));
        }
        let interfaces = self.attachments.iter().map(|at| at.interface().name.clone()).collect();
        tracing::info!(?options, "capture started");
        Ok((CaptureStarted { interfaces, snaplen }, pump))
    }

    /// After the capture's thread ended: the program without it comes back, and the client is told.
    pub(super) async fn end_capture(&mut self, ended: Ended, view: &mut View) {
        let Some(capture) = self.capture.take() else {
            return;
        };
        if let Err(error) = self.tables.balancer.aim_at_nothing() {
            tracing::error!("the capture goes on in the program: {error}");
        }
        let end = CaptureEnd {
            samples: ended.samples,
            lost: capture.lost.saturating_add(lost(&self.tables)),
            error: ended.error,
        };
        if let Err(error) = self.reload_program(view).await {
            // The next reload tries again: the features are not those of the configuration.
            tracing::error!(
                "the capture is over and its program stays, sampling nothing: {}",
                report(&error)
            );
        }
        tracing::info!(
            samples = end.samples,
            lost = end.lost,
            error = end.error,
            "capture ended"
        );
        if let Some(client) = ended.client {
            tell_end(client, end);
        }
    }

    /// Whether the program in place has other features than it should.
    pub(super) fn is_other_program(&self, configured: u64) -> bool {
        self.tables.planner.config().features != configured | features(self.capture.as_ref())
    }

    /// Loads the program again for the configuration in force, and for the capture if there is one.
    async fn reload_program(&mut self, view: &mut View) -> anyhow::Result<()> {
        let file = self.file.clone();
        self.apply(&file, true, view).await
    }
}

/// The verdicts with these reasons; all, where none are given.
fn verdicts(reasons: &[String]) -> anyhow::Result<Vec<Verdict>> {
    if reasons.is_empty() {
        return Ok(Verdict::ALL.to_vec());
    }
    let find = |reason: &String| {
        let found = Verdict::ALL.iter().copied().find(|verdict| verdict.reason() == reason);
        found.with_context(|| format!("no verdict has the reason `{reason}`: `vipline counters --all` shows them"))
    };
    reasons.iter().map(find).collect()
}

fn names(tables: &Tables, attachments: &[Attachment]) -> Names {
    let vips = tables.planner.vips().map(|vip| {
        let VipIndex(index) = vip.index;
        (u64::from(index), vip.key)
    });
    let backends = tables.planner.backends().map(|backend| {
        let BackendIndex(index) = backend.index;
        (u64::from(index), backend.id.clone())
    });
    let interfaces = attachments.iter().map(|attachment| {
        let interface = attachment.interface();
        (u64::from(interface.index), interface.name.clone())
    });
    Names {
        vips: vips.collect(),
        backends: backends.collect(),
        interfaces: interfaces.collect(),
    }
}

/// Samples for which this program's rings had no room.
fn lost(tables: &Tables) -> u64 {
    match tables.balancer.counters.capture.sum(0) {
        Ok(state) => state.lost,
        Err(error) => {
            tracing::error!("what the capture lost is not known: {error}");
            0
        }
    }
}
