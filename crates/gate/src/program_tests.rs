//! The eBPF program fed packet by packet (`BPF_PROG_TEST_RUN`), where checksums are real. Needs root.

use std::net::{Ipv4Addr, SocketAddrV4};

use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};

use crate::kernel::{Config, Entry, Gate};
use crate::segment::{Segment, flag, parse, resendable};
use crate::tuple::Tuple;

const OK: u32 = 0;
const SHOT: u32 = 2;
const ISS: u32 = 0xffff_ff00;
const IRS: u32 = 7000;
const MASK: [u8; 6] = [2, 9, 9, 9, 9, 9];

struct Bench {
    gate: Gate,
    ebpf: Ebpf,
    tuple: Tuple,
}

/// MSS 1460, SACK, timestamps, window scale 7.
fn syn_options(scale: u8) -> Vec<u8> {
    vec![
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, scale,
    ]
}

/// A frame with these TCP options, checksums right.
fn frame(s: &Segment<'_>, options: &[u8]) -> Vec<u8> {
    let mut f = Segment {
        timestamps: None,
        payload: &[],
        ..*s
    }
    .frame([1; 6], [2; 6]);
    f[34 + 12] = (5 + options.len() as u8 / 4) << 4;
    f.extend_from_slice(options);
    f.extend_from_slice(s.payload);
    let total = (f.len() - 14) as u16;
    f[16..18].copy_from_slice(&total.to_be_bytes());
    resendable(&f, 65_000).remove(0)
}

impl Bench {
    fn new() -> Self {
        let config = Config {
            gate: true,
            mask: Some(MASK),
            hold: false,
            answers: false,
        };
        let (gate, ebpf) = Gate::load("none", &config).expect("the program loads");
        gate.set_lease(u64::MAX);
        let end = |n, p| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), p);
        Self {
            gate,
            ebpf,
            tuple: Tuple {
                local: end(1, 80),
                peer: end(2, 40_000),
            },
        }
    }

    fn run(&self, name: &str, frame: &[u8]) -> (u32, Vec<u8>) {
        let program: &SchedClassifier = self.ebpf.program(name).unwrap().try_into().unwrap();
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// The container sends.
    fn send(
        &self,
        seq: u32,
        ack: u32,
        flags: u8,
        options: &[u8],
        payload: &[u8],
    ) -> (u32, Vec<u8>) {
        let (from, to) = (self.tuple.local, self.tuple.peer);
        let s = Segment {
            from,
            to,
            seq,
            ack,
            flags,
            window: 500,
            timestamps: None,
            payload,
        };
        self.run("from_container", &frame(&s, options))
    }

    /// The peer sends.
    fn receive(&self, seq: u32, ack: u32, flags: u8, options: &[u8], payload: &[u8]) -> u32 {
        let (from, to) = (self.tuple.peer, self.tuple.local);
        let s = Segment {
            from,
            to,
            seq,
            ack,
            flags,
            window: 300,
            timestamps: None,
            payload,
        };
        self.run("to_container", &frame(&s, options)).0
    }

    fn established() -> (Self, Entry) {
        let mut bench = Self::new();
        bench.receive(IRS, 0, flag::SYN, &syn_options(8), &[]);
        assert_eq!(
            bench
                .send(ISS, IRS + 1, flag::SYN | flag::ACK, &syn_options(7), &[])
                .0,
            OK
        );
        bench.receive(IRS + 1, ISS + 1, flag::ACK, &[], &[]);
        let tuple = bench.tuple;
        let (entry, h) = bench.gate.register(&tuple).unwrap();
        assert_eq!(
            (h.iss, h.irs, h.peer_mss, h.local_mss),
            (ISS, IRS, 1460, 1460)
        );
        assert_eq!(h.scale, Some(crate::Scale { local: 7, peer: 8 }));
        assert!(h.sack && h.timestamps && !h.active && h.tuple == tuple);
        (bench, entry)
    }
}

/// A frame whose sums are right is what computing them again makes of it.
fn sums_hold(f: &[u8]) -> bool {
    resendable(f, 65_000) == [f.to_vec()]
}

#[test]
fn a_clamped_segment_keeps_its_checksum_its_edge_and_no_selective_acknowledgement() {
    let (bench, entry) = Bench::established();
    bench.gate.allow_receive(entry, 1000, false);
    bench.gate.allow_send(entry, 4, false);
    let blocks: Vec<u8> = (10..42).collect();
    for count in 1..=4_u8 {
        let block = [&[5, 2 + 8 * count][..], &blocks[..usize::from(count) * 8]].concat();
        // At an even and at an odd place.
        for options in [
            [&[1, 1][..], &block].concat(),
            [&[1][..], &block, &[1]].concat(),
        ] {
            let (verdict, out) = bench.send(ISS + 1, IRS + 4001, flag::ACK, &options, b"data");
            assert_eq!(verdict, OK);
            let s = parse(&out).unwrap();
            assert_eq!((s.ack, s.sack, s.payload), (IRS + 1001, None, 4));
            assert_eq!(s.window, 500 + (3000 >> 7));
            assert!(sums_hold(&out), "{count} blocks");
            assert_eq!(out[6..12], MASK);
        }
    }
    let progress = bench.gate.progress(entry);
    assert_eq!(
        (progress.kernel_ack, progress.sent_ack),
        (IRS + 4001, IRS + 1001)
    );
}

#[test]
fn what_the_log_covers_passes_as_it_is() {
    let (bench, entry) = Bench::established();
    bench.gate.allow_receive(entry, 4000, false);
    let options = [1, 1, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let (verdict, out) = bench.send(ISS + 1, IRS + 4001, flag::ACK, &options, &[]);
    let s = parse(&out).unwrap();
    assert_eq!((verdict, s.ack, s.window), (OK, IRS + 4001, 500));
    assert_eq!(s.sack, Some((0x0102_0304, 0x0506_0708)));
    assert!(sums_hold(&out));
}

#[test]
fn bytes_ends_and_resets_wait_for_their_release() {
    let (bench, entry) = Bench::established();
    let ack = IRS + 1;
    assert_eq!(bench.send(ISS + 1, ack, flag::ACK, &[], b"x").0, SHOT);
    bench.gate.allow_send(entry, 1, false);
    assert_eq!(bench.send(ISS + 1, ack, flag::ACK, &[], b"x").0, OK);
    assert_eq!(
        bench.send(ISS + 1, ack, flag::ACK | flag::FIN, &[], b"x").0,
        SHOT
    );
    assert_eq!(
        bench.send(ISS + 2, ack, flag::ACK | flag::FIN, &[], &[]).0,
        SHOT
    );
    assert_eq!(bench.send(ISS + 2, ack, flag::RST, &[], &[]).0, SHOT);
    bench.gate.allow_send(entry, 1, true);
    assert_eq!(
        bench.send(ISS + 2, ack, flag::ACK | flag::FIN, &[], &[]).0,
        OK
    );
    assert_eq!(bench.gate.progress(entry).snd_nxt, ISS.wrapping_add(3));
    bench.gate.allow_reset(entry);
    assert_eq!(bench.send(ISS + 2, ack, flag::RST, &[], &[]).0, OK);
    let c = bench.gate.counters();
    assert_eq!((c.unreleased, c.reset), (3, 1));
}

/// The kernel was given less than what was released, and all who held its socket were killed.
#[test]
fn an_end_before_released_bytes_does_not_leave() {
    let (bench, entry) = Bench::established();
    bench.gate.allow_send(entry, 1000, false);
    let ack = IRS + 1;
    assert_eq!(bench.send(ISS + 1, ack, flag::ACK, &[], &[0; 100]).0, OK);
    for payload in [&[][..], &[0; 50]] {
        let end = bench.send(ISS + 101, ack, flag::ACK | flag::FIN, &[], payload);
        assert_eq!(end.0, SHOT);
    }
}

#[test]
fn acknowledgements_are_believed_up_to_what_left() {
    let (bench, entry) = Bench::established();
    bench.gate.allow_send(entry, 300, false);
    assert_eq!(
        bench.send(ISS + 1, IRS + 1, flag::ACK, &[], &[0; 300]).0,
        OK
    );
    bench.receive(IRS + 1, ISS.wrapping_add(302), flag::ACK, &[], &[]);
    assert_eq!(bench.gate.progress(entry).una, ISS.wrapping_add(1));
    bench.receive(IRS + 1, ISS.wrapping_add(281), flag::ACK, &[], b"12345");
    let p = bench.gate.progress(entry);
    assert_eq!(
        (p.una, p.peer_window, p.peer_nxt),
        (ISS.wrapping_add(281), 300 << 8, IRS + 6)
    );
    bench.receive(IRS + 1, ISS.wrapping_add(100), flag::ACK, &[], &[]);
    assert_eq!(
        bench.gate.progress(entry).una,
        ISS.wrapping_add(281),
        "it does not go back"
    );
}

#[test]
fn a_closed_tuple_may_end_as_the_kernel_likes_and_begin_again() {
    let (mut bench, entry) = Bench::established();
    assert_eq!(bench.send(ISS + 9, IRS + 9, flag::RST, &[], &[]).0, SHOT);
    bench.gate.finish(entry, true).unwrap();
    assert_eq!(bench.send(ISS + 9, IRS + 9, flag::RST, &[], &[]).0, OK);
    bench.receive(77, 0, flag::SYN, &syn_options(8), &[]);
    assert_eq!(
        bench
            .send(99, 78, flag::SYN | flag::ACK, &syn_options(7), &[])
            .0,
        OK
    );
    bench.receive(78, 100, flag::ACK, &[], &[]);
    assert_eq!(
        bench.send(100, 78, flag::RST, &[], &[]).0,
        SHOT,
        "the new connection is not closed"
    );
    let tuple = bench.tuple;
    assert_eq!(bench.gate.register(&tuple).unwrap().1.iss, 99);
}

#[test]
fn a_connection_of_the_containers_own_is_known_too() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(ISS, 0, flag::SYN, &syn_options(7), &[]).0, OK);
    bench.receive(IRS, ISS + 1, flag::SYN | flag::ACK, &syn_options(8), &[]);
    let tuple = bench.tuple;
    let (_, h) = bench.gate.register(&tuple).unwrap();
    assert!(h.active && (h.iss, h.irs) == (ISS, IRS));
    assert_eq!(bench.send(ISS + 1, IRS + 1, flag::ACK, &[], &[]).0, OK);
}

#[test]
fn an_old_acknowledgement_establishes_nothing() {
    let mut bench = Bench::new();
    bench.receive(IRS, 0, flag::SYN, &syn_options(8), &[]);
    assert_eq!(
        bench
            .send(ISS, IRS + 1, flag::SYN | flag::ACK, &syn_options(7), &[])
            .0,
        OK
    );
    bench.receive(IRS + 1, ISS + 2, flag::ACK, &[], &[]);
    let tuple = bench.tuple;
    assert!(bench.gate.register(&tuple).is_err());
    assert_eq!(bench.send(ISS + 1, IRS + 1, flag::ACK, &[], &[]).0, SHOT);
    assert_eq!(
        bench.send(5, 6, flag::SYN | flag::ACK, &[], &[]).0,
        SHOT,
        "it answers no SYN"
    );
}

#[test]
fn the_lease_counts_for_every_kind_of_frame() {
    let (bench, _) = Bench::established();
    let arp = sys::tcp::gratuitous_arp([2; 6], Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(bench.run("from_container", &arp).0, OK);
    let mut six = [0; 60];
    six[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    assert_eq!(
        bench.run("from_container", &six).0,
        SHOT,
        "IPv6 would pass every rule"
    );
    bench.gate.set_lease(sys::bpf::boot_ns());
    assert_eq!(bench.run("from_container", &arp).0, SHOT);
    assert_eq!(bench.send(ISS + 1, IRS + 1, flag::ACK, &[], &[]).0, SHOT);
    bench.gate.set_gate(false);
    assert_eq!(bench.run("from_container", &six).0, SHOT);
    assert_eq!(bench.gate.counters().lease, 3);
    bench.gate.set_lease(u64::MAX);
    assert_eq!(bench.run("from_container", &six).0, OK);
}

#[test]
fn fragments_and_broken_headers_do_not_pass() {
    let (bench, _) = Bench::established();
    let whole = Segment {
        from: bench.tuple.local,
        to: bench.tuple.peer,
        seq: ISS + 1,
        ack: IRS + 1,
        flags: flag::ACK,
        window: 1,
        timestamps: None,
        payload: &[],
    }
    .frame([1; 6], [2; 6]);
    assert_eq!(bench.run("from_container", &whole).0, OK);
    for (at, value) in [
        (20, 0x20),
        (21, 1),
        (14, 0x44),
        (17, 39),
        (17, 200),
        (46, 0x40),
    ] {
        let mut f = whole.clone();
        f[at] = value;
        assert_eq!(
            bench.run("from_container", &f).0,
            SHOT,
            "byte {at} = {value}"
        );
    }
}
