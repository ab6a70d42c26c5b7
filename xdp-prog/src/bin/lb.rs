//! The balancer's XDP program. All logic is in the library; here it meets its maps.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use core::ffi::c_void;

    use aya_ebpf::{
        EbpfContext as _,
        bindings::{BPF_F_CURRENT_CPU, xdp_action, xdp_md},
        btf_maps::{ArrayOfMaps, DevMap, HashMap, PerfEventArray, XskMap},
        helpers::generated::{
            bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns, bpf_perf_event_output, bpf_redirect_map,
            bpf_xdp_adjust_meta,
        },
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use xdp_prog::{
        abi::{
            BackendLine, BucketV4, BucketV6, CaptureState, FlowBucket, FlowCounts, KeyV4, KeyV6, LimitState,
            SampleHeader, SlowBudget, SlowState, Traffic, VipIndex, VipMeta, VipOptions, feature, socket_key,
        },
        balance::{
            self,
            matching::{self, KIND_ADDRESS, KIND_VIP},
            schedule::{self, About},
            transit::{Rest, Said},
        },
        decap,
        flows::{FlowTable, Unrecorded},
        kernel::{KernelFrame, action},
        limit,
        machine::{BalancerTables, Constants, Frame as _, MatchTables, is_on, opaque, store, take_turn, word},
        mss,
        verdict::Verdict,
    };

    xdp_prog::program!();

    // The loader sets the sizes that depend on the node's capacity; these are the smallest that verify.
    #[btf_map]
    static VIPS_V4: Array<BucketV4, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static VIPS_V6: Array<BucketV6, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static LOOKUP_TABLES: ArrayOfMaps<Array<u64, { abi::SEGMENT_WORDS }, MMAPABLE>, { abi::MAX_SEGMENTS }> =
        ArrayOfMaps::new();
    #[btf_map]
    static BACKENDS: Array<BackendLine, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static VIP_OPTIONS: Array<VipOptions, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static VIP_COUNTERS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
    #[btf_map]
    static BACKEND_COUNTERS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
    #[btf_map]
    static LIMITS: PerCpuArray<LimitState, 1> = PerCpuArray::new();
    #[btf_map]
    static PORTS: DevMap<{ abi::MAX_PORTS }> = DevMap::new();
    #[btf_map]
    static XSKS: XskMap<{ abi::MAX_QUEUES }> = XskMap::new();
    #[btf_map]
    static XSK_INDEX: HashMap<u64, u32, { abi::MAX_QUEUES }> = HashMap::new();
    #[btf_map]
    static SLOW_BUDGETS: Array<SlowBudget, { abi::MAX_VERDICTS }, MMAPABLE> = Array::new();
    #[btf_map]
    static SLOW_STATES: PerCpuArray<SlowState, { abi::MAX_VERDICTS }> = PerCpuArray::new();
    #[btf_map]
    static FLOWS: Array<FlowBucket, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static FLOW_MARKS: Array<u64, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static FLOW_COUNTS: PerCpuArray<FlowCounts, 1> = PerCpuArray::new();
    #[btf_map]
    static OPEN_FLOWS: Array<u64, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static TURNS: Array<u64, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static SAMPLES: PerfEventArray = PerfEventArray::new();
    #[btf_map]
    static CAPTURES: PerCpuArray<CaptureState, 1> = PerCpuArray::new();

    /// Picks a backend and sends the packet there.
    #[xdp(frags)]
    pub(crate) fn vipline_lb(ctx: XdpContext) -> u32 {
        let mut machine = Machine::new(ctx);
        if is_on::<{ feature::CAPTURE }>(&machine) {
            begin_capture(&machine);
        }
        let verdict = balance::run(&mut machine);
        Machine::count(verdict);
        if is_on::<{ feature::CAPTURE }>(&machine) {
            sample(machine.frame.ctx.as_ptr(), verdict as u64);
        }
        // With the slow path on, its packets have been redirected by the time they are counted.
        let slow_path = is_on::<{ feature::SLOW_PATH }>(&machine);
        action(
            verdict,
            if slow_path {
                xdp_action::XDP_REDIRECT
            } else {
                xdp_action::XDP_DROP
            },
        )
    }

    struct MatchMaps;

    impl Constants for MatchMaps {
        #[inline(always)]
        fn config(&self) -> *const Config {
            &raw const CONFIG
        }
    }

    macro_rules! match_tables {
        ($($name:ty),+) => {$(
            impl MatchTables for $name {
                #[inline(always)]
                fn bucket_v4(&self, index: u32) -> Option<*const BucketV4> {
                    VIPS_V4.get_ptr(index)
                }

                #[inline(always)]
                fn bucket_v6(&self, index: u32) -> Option<*const BucketV6> {
                    VIPS_V6.get_ptr(index)
                }
            }
        )+};
    }

    match_tables!(Machine, MatchMaps);

    /// A subprogram of its own.
    #[inline(never)]
    fn overflow_v4(first: u64, key: u64, address: u64) -> u64 {
        matching::overflow(&MatchMaps, first, KeyV4(key), KeyV4(address))
    }

    /// A subprogram of its own.
    #[inline(never)]
    fn overflow_v6(first: u64, high: u64, low: u64, tail: u64) -> u64 {
        let key = KeyV6 { high, low, tail };
        matching::overflow(&MatchMaps, first, key, KeyV6::from_wire(high, low, 0, 0))
    }

    /// A subprogram of its own: the worker side, for tunnel packets only.
    #[inline(never)]
    fn decapsulate(ctx: *mut c_void) -> u64 {
        decap::run(&mut Machine::new(context(ctx))) as u64
    }

    /// The context that a subprogram was given. The compiler would rather pass the words that are read from it; the verifier
    /// knows what those are only where they are read.
    #[inline(always)]
    fn context(ctx: *mut c_void) -> XdpContext {
        XdpContext::new(opaque(ctx as u64) as *mut _)
    }

    /// A subprogram of its own: what is not plain IP.
    #[inline(never)]
    fn unusual(ctx: *mut c_void) -> u64 {
        balance::unusual::run(&mut Machine::new(context(ctx))) as u64
    }

    /// A subprogram of its own: the options of SYNs to VIPs that ask for it.
    #[inline(never)]
    fn clamp_mss(ctx: *mut c_void, l3: u64, most: u64) -> u64 {
        let ctx = context(ctx);
        // SAFETY: the verifier proves every access against `data` and `data_end`.
        u64::from(unsafe { mss::clamp_syn(ctx.data() + (l3 & 0xff) as usize, ctx.data_end(), most as u16) })
    }

    // The three that follow are global in the object, and so verified once and by themselves, whatever their callers know: what they
    // do with records has too many ways through to be walked for each kind of packet.

    /// A subprogram of its own: VIPs with slots in transit, or a scheduler. Takes the number of a [`Rest`], returns that of a [`Said`].
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(crate) extern "C" fn vipline_transit(ctx: *mut xdp_md, hash: u64, meta: u64, rest: u64) -> u64 {
        balance::transit::run(&mut Machine::new(context(ctx.cast())), hash, VipMeta(meta), Rest(rest)).0
    }

    /// A subprogram of its own: clients of VIPs that remember them. Returns the number of a [`Said`].
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(crate) extern "C" fn vipline_client(ctx: *mut xdp_md, vip: u64, about: u64) -> u64 {
        schedule::client(&Machine::new(context(ctx.cast())), vip as u32, About(about)).0
    }

    /// A subprogram of its own: the method of a VIP. Returns a backend's index. Without a context, as it looks at no packet.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(crate) extern "C" fn vipline_pick(vip: u64, slot: u64) -> u64 {
        let machine = Machine::new(XdpContext::new(core::ptr::null_mut()));
        u64::from(schedule::pick(&machine, vip as u32, slot as u16))
    }

    /// A subprogram of its own: the way to the slow path. Returns the number of what is counted.
    #[inline(never)]
    fn to_slow_path(ctx: *mut c_void, verdict: u64) -> u64 {
        let number = verdict as u32;
        let (Some(budget), Some(state)) = (SLOW_BUDGETS.get_ptr(number), SLOW_STATES.get_ptr_mut(number)) else {
            return Verdict::DropInternal as u64;
        };
        // SAFETY: pointers from map lookups, aligned; the state is this CPU's own.
        unsafe {
            let burst = word(&raw const (*budget).burst);
            if burst != 0 {
                let rate = word(&raw const (*budget).rate);
                let now = bpf_jiffies64();
                if !limit::take(&mut (*state).tokens, &mut (*state).jiffy, rate, burst, now) {
                    (*state).shed = (*state).shed.wrapping_add(1);
                    return Verdict::DropSlowBudget as u64;
                }
            }
        }
        let ctx = context(ctx);
        let key = socket_key(ctx.ingress_ifindex() as u32, ctx.rx_queue_index());
        let Some(socket) = XSK_INDEX.get_ptr(key) else {
            return Verdict::DropNoSlowPath as u64;
        };
        // SAFETY: a pointer from a map lookup; entries of a preallocated hash map stay readable.
        let socket = unsafe { socket.read_volatile() };
        // The reason travels in front of the packet: 8 bytes of metadata, the verdict's number in the first.
        // SAFETY: the context is the program's own; the metadata is written inside its bounds.
        unsafe {
            if bpf_xdp_adjust_meta(ctx.as_ptr().cast(), -8) == 0 {
                let meta = ctx.metadata();
                if meta + 8 <= ctx.data() {
                    store(meta, verdict);
                }
            }
        }
        // SAFETY: the map is the program's own.
        let action = unsafe {
            bpf_redirect_map(
                (&raw const XSKS).cast_mut().cast(),
                u64::from(socket),
                xdp_action::XDP_DROP.into(),
            )
        };
        if action == i64::from(xdp_action::XDP_REDIRECT) {
            verdict
        } else {
            Verdict::DropNoSlowPath as u64
        }
    }

    /// Notes what a capture wants to know of a packet before anything is done to it.
    #[inline(always)]
    fn begin_capture(machine: &Machine) {
        if let Some(state) = CAPTURES.get_ptr_mut(0) {
            // SAFETY: this CPU's own value.
            unsafe {
                (*state).vip = SampleHeader::NONE;
                (*state).backend = SampleHeader::NONE;
                (*state).original_len = machine.total_len() as u64;
            }
        }
    }

    /// A subprogram of its own: puts the packet into this CPU's ring, if the settings ask for it.
    #[inline(never)]
    fn sample(ctx: *mut c_void, verdict: u64) -> u64 {
        let Some(state) = CAPTURES.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: this CPU's own value.
        let state = unsafe { &mut *state };
        if value(setting::CAPTURE_VERDICTS) >> (verdict & 63) & 1 == 0 {
            return 0;
        }
        let vip = value(setting::CAPTURE_VIP);
        if vip != 0 && vip != state.vip.wrapping_add(1) {
            return 0;
        }
        let one_in = value(setting::CAPTURE_SAMPLE) as u32;
        // SAFETY: a helper without arguments.
        if one_in > 1 && unsafe { bpf_get_prandom_u32() } % one_in != 0 {
            return 0;
        }
        let burst = value(setting::CAPTURE_BURST);
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_jiffies64() };
        if burst != 0
            && !limit::take(
                &mut state.tokens,
                &mut state.jiffy,
                value(setting::CAPTURE_RATE),
                burst,
                now,
            )
        {
            return 0;
        }
        let ctx = context(ctx);
        let frame = KernelFrame { ctx };
        let len = frame.total_len() as u64;
        let captured_len = value(setting::CAPTURE_SNAPLEN).min(len) & 0xffff;
        let header = SampleHeader {
            // SAFETY: a helper without arguments.
            time_ns: unsafe { bpf_ktime_get_ns() },
            verdict,
            vip: state.vip,
            backend: state.backend,
            ifindex: u64::from(frame.ingress_ifindex()),
            queue: u64::from(frame.ctx.rx_queue_index()),
            original_len: state.original_len,
            len,
            captured_len,
        };
        // The upper half of the flags says how much of the frame follows (BPF_F_CTXLEN_MASK: 20 bits).
        // SAFETY: the context is the program's own, the header lies on the stack.
        let result = unsafe {
            bpf_perf_event_output(
                frame.ctx.as_ptr(),
                (&raw const SAMPLES).cast_mut().cast(),
                u64::from(BPF_F_CURRENT_CPU as u32) | captured_len << 32,
                (&raw const header).cast_mut().cast(),
                size_of::<SampleHeader>() as u64,
            )
        };
        if result != 0 {
            state.lost = state.lost.wrapping_add(1);
        }
        0
    }

    /// A word of `SETTINGS`.
    #[inline(always)]
    fn value(index: u32) -> u64 {
        // SAFETY: a pointer from a map lookup, aligned.
        SETTINGS.get_ptr(index).map_or(0, |at| unsafe { word(at) })
    }

    /// The verdict that a subprogram returned the number of.
    #[inline(always)]
    fn said(number: u64) -> Verdict {
        // SAFETY: the subprograms return nothing but numbers of verdicts. A comparison would cost code at every call.
        unsafe { core::mem::transmute::<u8, Verdict>(number as u8) }
    }

    impl FlowTable for Machine {
        #[inline(always)]
        fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket> {
            FLOWS.get_ptr_mut(index)
        }

        #[inline(always)]
        fn flow_marks(&self, word: u32) -> Option<*mut u64> {
            FLOW_MARKS.get_ptr_mut(word)
        }

        #[inline(always)]
        fn backend(&self, index: u32) -> Option<*const BackendLine> {
            BACKENDS.get_ptr(index)
        }

        #[inline(always)]
        fn is_counting(&self) -> bool {
            is_on::<{ feature::SCHEDULERS }>(self)
        }

        #[inline(always)]
        fn open_flows(&self, backend: u32) -> Option<*mut u64> {
            OPEN_FLOWS.get_ptr_mut(backend)
        }

        #[inline(always)]
        fn unrecorded(&self, packet: Unrecorded) {
            if let Some(counts) = FLOW_COUNTS.get_ptr_mut(0) {
                // SAFETY: this CPU's own value.
                unsafe {
                    match packet {
                        Unrecorded::Syn => (*counts).syns = (*counts).syns.wrapping_add(1),
                        Unrecorded::Datagram => (*counts).datagrams = (*counts).datagrams.wrapping_add(1),
                        Unrecorded::Scheduled => (*counts).scheduled = (*counts).scheduled.wrapping_add(1),
                        Unrecorded::Client => (*counts).clients = (*counts).clients.wrapping_add(1),
                    }
                }
            }
        }
    }

    impl BalancerTables for Machine {
        #[inline(always)]
        fn overflow_v4(&self, key: Option<KeyV4>, address: KeyV4) -> u64 {
            match key {
                Some(key) => overflow_v4(KIND_VIP, key.0, address.0),
                None => overflow_v4(KIND_ADDRESS, address.0, address.0),
            }
        }

        #[inline(always)]
        fn overflow_v6(&self, key: Option<KeyV6>, address: KeyV6) -> u64 {
            let KeyV6 { high, low, tail } = address;
            match key {
                Some(key) => overflow_v6(KIND_VIP, high, low, key.tail),
                None => overflow_v6(KIND_ADDRESS, high, low, tail),
            }
        }

        #[inline(always)]
        fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64> {
            LOOKUP_TABLES
                .get_value_ptr_mut(segment, &word)
                .map(<*mut u64>::cast_const)
        }

        #[inline(always)]
        fn activity(&self, segment: u32, word: u32) -> Option<*mut u64> {
            LOOKUP_TABLES.get_value_ptr_mut(segment, &word)
        }

        #[inline(always)]
        fn transit(&mut self, hash: u64, meta: VipMeta, rest: Rest) -> Said {
            Said(vipline_transit(self.frame.ctx.as_ptr().cast(), hash, meta.0, rest.0))
        }

        #[inline(always)]
        fn client(&self, vip: u32, about: About) -> Said {
            Said(vipline_client(self.frame.ctx.as_ptr().cast(), u64::from(vip), about.0))
        }

        #[inline(always)]
        fn pick(&self, vip: u32, slot: u16) -> u16 {
            vipline_pick(u64::from(vip), u64::from(slot)) as u16
        }

        #[inline(always)]
        fn turn(&self, vip: u32) -> u64 {
            // SAFETY: the configuration lives as long as the program; a pointer from a map lookup, aligned, to a word that is written
            // in this way alone.
            let (secret, turn) = unsafe {
                (
                    word(&raw const CONFIG.flow_secret),
                    TURNS.get_ptr_mut(vip).map_or(0, |at| take_turn(at)),
                )
            };
            turn.wrapping_add(schedule::first_turn(secret, VipIndex(vip)))
        }

        #[inline(always)]
        fn options(&self, vip: u32) -> Option<*const VipOptions> {
            VIP_OPTIONS.get_ptr(vip)
        }

        #[inline(always)]
        fn limit_state(&self, vip: u32) -> Option<*mut LimitState> {
            LIMITS.get_ptr_mut(vip)
        }

        #[inline(always)]
        fn vip_traffic(&self, vip: u32) -> Option<*mut Traffic> {
            VIP_COUNTERS.get_ptr_mut(vip)
        }

        #[inline(always)]
        fn backend_traffic(&self, backend: u32) -> Option<*mut Traffic> {
            BACKEND_COUNTERS.get_ptr_mut(backend)
        }

        #[inline(always)]
        fn jiffies(&self) -> u64 {
            // SAFETY: a helper without arguments.
            unsafe { bpf_jiffies64() }
        }

        #[inline(always)]
        fn redirect(&mut self, port: u32) -> bool {
            PORTS.redirect(port, 0).is_ok()
        }

        #[inline(always)]
        fn decapsulate(&mut self) -> Verdict {
            said(decapsulate(self.frame.ctx.as_ptr()))
        }

        #[inline(always)]
        fn to_slow_path(&mut self, verdict: Verdict) -> Verdict {
            said(to_slow_path(self.frame.ctx.as_ptr(), verdict as u64))
        }

        #[inline(always)]
        fn unusual(&mut self) -> Verdict {
            said(unusual(self.frame.ctx.as_ptr()))
        }

        #[inline(always)]
        fn clamp_mss(&mut self, l3: usize, most: u16) {
            clamp_mss(self.frame.ctx.as_ptr(), l3 as u64, u64::from(most));
        }

        #[inline(always)]
        fn claimed(&mut self, vip: u32) {
            if is_on::<{ feature::CAPTURE }>(self)
                && let Some(state) = CAPTURES.get_ptr_mut(0)
            {
                // SAFETY: this CPU's own value.
                unsafe { (*state).vip = u64::from(vip) };
            }
        }

        #[inline(always)]
        fn chose(&mut self, _vip: u32, _slot: u32, backend: u32) {
            if is_on::<{ feature::CAPTURE }>(self)
                && let Some(state) = CAPTURES.get_ptr_mut(0)
            {
                // SAFETY: this CPU's own value.
                unsafe { (*state).backend = u64::from(backend) };
            }
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
