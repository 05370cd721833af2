// SPDX-License-Identifier: MIT OR Apache-2.0
// The gate's kernel half: two tc classifiers on the host's end of a container's veth.
//
//   from_container   clsact ingress: what the container sends
//   to_container     clsact egress: what the container is sent
//
// Layouts are mirrored in src/layout.rs, which asserts every offset. Nothing here waits for user space:
// a lease that nobody renews closes the gate by itself.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_CONNECTIONS 16384
#define MAX_HALF_OPEN 16384
#define MAX_CLOSED 16384
#define OPENINGS_LEN (256 << 10)
#define ANSWER_LEN 176 // the longest frame of an answer: all headers with all their options

#define HELD_SLOTS 8192
#define HELD_DATA 2016
#define HELD_CHUNKS 33

// Bits of config.flags.
#define FLAG_GATE 1 // connections are clamped and released; without it only the lease counts
#define FLAG_MASK 2 // the source MAC of what leaves is config.mask
#define FLAG_HOLD 4 // IPv4 for the container is kept in `held` and not delivered
#define FLAG_ANSWERS 8 // answers to connection requests go to `openings` and leave when user space sends them

// Bits of connection.permit.
#define PERMIT_OWNED 1 // user space holds this entry
#define PERMIT_RESET 2 // the log holds the close that causes a reset
#define PERMIT_HELD 4  // what the peer sends is kept in `held`: its socket is not there yet
#define PERMIT_FIN 8   // user space has ended the stream: the FIN at rel_snd is the application's

// Values of connection.state.
#define STATE_OPEN 1
#define STATE_RESET 2    // the peer sent a reset
#define STATE_REPLACED 3 // the tuple belongs to a newer connection

// Bits of handshake.options: what both sides agreed on.
#define OPTION_WSCALE 1
#define OPTION_SACK 2
#define OPTION_TIMESTAMPS 4
#define OPTION_ACTIVE 8 // the container connected

// Indices of counters.
enum {
    COUNT_PASSED,
    COUNT_LEASE,
    COUNT_ETHERTYPE,
    COUNT_MALFORMED,
    COUNT_UNKNOWN,
    COUNT_RESET,
    COUNT_UNRELEASED,
    COUNT_CLAMPED,
    COUNT_PURE_ACK,
    COUNT_FULL,
    COUNT_HELD,
    COUNT_ANSWER,
    COUNTERS,
};

// Addresses are IPv6 or IPv4-mapped; ports in network order.
struct key {
    __u8 local[16];
    __u8 peer[16];
    __be16 local_port;
    __be16 peer_port;
};

struct handshake {
    __u32 iss; // the container's initial sequence number
    __u32 irs; // the peer's
    __u16 local_mss;
    __u16 peer_mss;
    __u8 local_wscale;
    __u8 peer_wscale;
    __u8 options;
    __u8 answered; // the second segment of the handshake was seen
    __u32 peer_window;
    __u32 window;
    __u32 tsval;
    __u32 peer_tsval;
    __u64 ts_ns;
};

struct connection {
    // 0: written once
    struct key key;
    __u32 iss;
    __u32 irs;
    __u16 local_mss;
    __u16 peer_mss;
    __u8 local_wscale;
    __u8 peer_wscale;
    __u8 options;
    __u8 pad0;
    __u64 established_ns;
    // 64: learnt from the peer's packets
    __u32 state;
    __u32 una;         // highest sequence number it acknowledged
    __u32 peer_window; // bytes it accepts beyond una
    __u32 peer_max_window;
    __u32 peer_nxt; // end of what it sent, its FIN included
    __u32 peer_fin; // 1 once its FIN was seen
    __u32 peer_tsval;
    __u32 pad1;
    __u64 peer_ns;
    __u64 pad2[3];
    // 128: learnt from the container's packets
    __u32 snd_nxt;    // end of what left
    __u32 kernel_ack; // highest acknowledgement the container's kernel wanted to send
    __u32 sent_ack;   // acknowledgement that left last
    __u32 window;     // window field that came with kernel_ack, unscaled
    __u32 edge;       // sent_ack plus the window that left with it
    __u32 tsval;      // last timestamp that left
    __u32 tsecr;      // last echo the kernel wanted to send
    __u32 pad3;
    __u64 ts_ns; // when tsval left
    __u64 pad4[3];
    // 192: written by user space
    __u32 rel_rcv; // no acknowledgement beyond this leaves
    __u32 rel_snd; // no payload and no FIN beyond this leaves
    __u32 permit;
    __u32 pad5;
    __u64 pad6[6];
};

struct config {
    __u64 lease_ns; // on boot time: from then on nothing leaves, and answers wait for the next lease in `openings`
    __u32 flags;
    __u8 mask[6];
    __u8 pad[6];
    __u64 held; // slots of `held` ever written
    __u64 pad2[4];
};

// One piece of a frame for the container. Larger frames take consecutive slots.
struct held {
    __u64 stamp; // number of this slot's use, from 1; written last
    __u64 ns;
    __u32 len;    // of the frame
    __u32 offset; // of this piece
    __u64 pad;
    __u8 data[HELD_DATA];
};

// The container's kernel answers a connection request.
struct opening {
    struct key key;
    __u32 len; // of the frame
    struct handshake handshake;
    __u8 frame[ANSWER_LEN];
};

#define AT(type, field, offset) _Static_assert(__builtin_offsetof(struct type, field) == offset, #field)
_Static_assert(sizeof(struct key) == 36, "key");
_Static_assert(sizeof(struct connection) == 256, "connection");
_Static_assert(sizeof(struct config) == 64, "config");
_Static_assert(sizeof(struct held) == 2048, "held");
AT(connection, iss, 36);
AT(connection, local_mss, 44);
AT(connection, established_ns, 56);
AT(connection, state, 64);
AT(connection, peer_tsval, 88);
AT(connection, peer_ns, 96);
AT(connection, snd_nxt, 128);
AT(connection, tsecr, 152);
AT(connection, ts_ns, 160);
AT(connection, rel_rcv, 192);
AT(config, held, 24);
AT(held, data, 32);
_Static_assert(sizeof(struct opening) == 256, "opening");
AT(opening, len, 36);
AT(opening, handshake, 40);
AT(opening, frame, 80);
AT(handshake, local_mss, 8);
AT(handshake, local_wscale, 12);
AT(handshake, tsval, 24);

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct config);
} config SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, MAX_CONNECTIONS);
    __type(key, __u32);
    __type(value, struct connection);
} connections SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, COUNTERS);
    __type(key, __u32);
    __type(value, __u64);
} counters SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, HELD_SLOTS);
    __type(key, __u32);
    __type(value, struct held);
} held SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_CONNECTIONS);
    __type(key, struct key);
    __type(value, __u32);
} tuples SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_STACK);
    __uint(max_entries, MAX_CONNECTIONS);
    __type(value, __u32);
} vacant SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, MAX_HALF_OPEN);
    __type(key, struct key);
    __type(value, struct handshake);
} half_open SEC(".maps");

// Tuples whose close the log holds and whose output the peer has: the kernel may finish them as it likes.
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, MAX_CLOSED);
    __type(key, struct key);
    __type(value, __u32);
} closed SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, OPENINGS_LEN);
} openings SEC(".maps");

// Initial sequence numbers of the answers that may leave.
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, MAX_HALF_OPEN);
    __type(key, struct key);
    __type(value, __u32);
} answered SEC(".maps");

// A TCP segment, whichever way it goes.
struct segment {
    __u32 tcp_at;  // offset of the TCP header
    __u32 options; // bytes of TCP options
    __u32 payload; // bytes of payload
    __u32 seq;
    __u32 ack;
    __u16 window;
    __u8 syn, fin, rst, has_ack;
};

enum parsed { NOT_TCP, TCP, MALFORMED };

static __always_inline void count(__u32 index)
{
    __u64 *n = bpf_map_lookup_elem(&counters, &index);
    if (n)
        __sync_fetch_and_add(n, 1);
}

static __always_inline int after(__u32 a, __u32 b)
{
    return (__s32)(a - b) > 0;
}

static __always_inline void map_v4(__u8 *to, __be32 address)
{
    __builtin_memset(to, 0, 10);
    to[10] = 0xff;
    to[11] = 0xff;
    __builtin_memcpy(to + 12, &address, 4);
}

// IPv6 would be one more branch of parse(): everything behind it knows only the key and the segment.
static __always_inline enum parsed parse_v4(struct __sk_buff *skb, struct key *key, struct segment *s, int outgoing)
{
    struct iphdr ip;
    struct tcphdr tcp;

    if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
        return MALFORMED;
    if (ip.version != 4 || ip.ihl < 5)
        return MALFORMED;
    if (ip.protocol != IPPROTO_TCP)
        return NOT_TCP;
    if (ip.frag_off & bpf_htons(0x3fff))
        return MALFORMED;
    s->tcp_at = ETH_HLEN + ip.ihl * 4;
    if (bpf_skb_load_bytes(skb, s->tcp_at, &tcp, sizeof(tcp)) || tcp.doff < 5)
        return MALFORMED;

    __u32 headers = ip.ihl * 4 + tcp.doff * 4;
    __u32 total = bpf_ntohs(ip.tot_len);
    if (!total) // a GSO packet beyond 64 KiB
        total = skb->len - ETH_HLEN;
    if (total < headers || total + ETH_HLEN > skb->len)
        return MALFORMED;
    s->options = tcp.doff * 4 - 20;
    s->payload = total - headers;
    s->seq = bpf_ntohl(tcp.seq);
    s->ack = bpf_ntohl(tcp.ack_seq);
    s->window = bpf_ntohs(tcp.window);
    s->syn = tcp.syn;
    s->fin = tcp.fin;
    s->rst = tcp.rst;
    s->has_ack = tcp.ack;

    map_v4(key->local, outgoing ? ip.saddr : ip.daddr);
    map_v4(key->peer, outgoing ? ip.daddr : ip.saddr);
    key->local_port = outgoing ? tcp.source : tcp.dest;
    key->peer_port = outgoing ? tcp.dest : tcp.source;
    return TCP;
}

struct options {
    __u32 tsval;
    __u32 tsecr;
    __u32 sack_at;
    __u16 mss;
    __u8 wscale;
    __u8 present; // OPTION_* bits
    __u8 sack_len;
};

// Walks the options; at most 16 of them, more than any stack sends.
static __always_inline void parse_options(struct __sk_buff *skb, const struct segment *s, struct options *o)
{
    __u32 at = s->tcp_at + 20, end = at + s->options;

    __builtin_memset(o, 0, sizeof(*o));
    o->mss = 536;
    for (int i = 0; i < 16; i++) {
        __u8 head[2] = {};
        if (at >= end || bpf_skb_load_bytes(skb, at, head, 1) || head[0] == 0)
            return;
        if (head[0] == 1) {
            at++;
            continue;
        }
        if (at + 1 >= end || bpf_skb_load_bytes(skb, at, head, 2) || head[1] < 2)
            return;
        if (head[0] == 2 && head[1] == 4) {
            __be16 mss;
            if (bpf_skb_load_bytes(skb, at + 2, &mss, 2))
                return;
            o->mss = bpf_ntohs(mss);
        } else if (head[0] == 3 && head[1] == 3) {
            if (bpf_skb_load_bytes(skb, at + 2, &o->wscale, 1))
                return;
            if (o->wscale > 14)
                o->wscale = 14;
            o->present |= OPTION_WSCALE;
        } else if (head[0] == 4) {
            o->present |= OPTION_SACK;
        } else if (head[0] == 5) {
            o->sack_at = at;
            o->sack_len = head[1];
        } else if (head[0] == 8 && head[1] == 10) {
            __be32 ts[2];
            if (bpf_skb_load_bytes(skb, at + 2, ts, 8))
                return;
            o->tsval = bpf_ntohl(ts[0]);
            o->tsecr = bpf_ntohl(ts[1]);
            o->present |= OPTION_TIMESTAMPS;
        }
        at += head[1];
    }
}

// The options of a segment without SYN: the usual layout by one load, anything else by the walk.
static __always_inline void segment_options(struct __sk_buff *skb, const struct segment *s, struct options *o)
{
    __u8 b[12];

    if (s->options == 12 && !bpf_skb_load_bytes(skb, s->tcp_at + 20, b, 12) && b[0] == 1 && b[1] == 1 && b[2] == 8) {
        __be32 ts[2];
        __builtin_memset(o, 0, sizeof(*o));
        __builtin_memcpy(ts, b + 4, 8);
        o->tsval = bpf_ntohl(ts[0]);
        o->tsecr = bpf_ntohl(ts[1]);
        o->present = OPTION_TIMESTAMPS;
        return;
    }
    parse_options(skb, s, o);
}

static __always_inline struct connection *lookup(struct key *key)
{
    __u32 *index = bpf_map_lookup_elem(&tuples, key);
    if (!index)
        return 0;
    __u32 i = *index;
    return bpf_map_lookup_elem(&connections, &i);
}

// The first segment of a handshake, from either side.
static __always_inline void handshake_begins(struct __sk_buff *skb, struct key *key, const struct segment *s, int active)
{
    struct handshake *old = bpf_map_lookup_elem(&half_open, key);
    if (old && (active ? old->iss : old->irs) == s->seq && !!(old->options & OPTION_ACTIVE) == active)
        return; // sent again

    struct handshake h = {};
    struct options o;
    parse_options(skb, s, &o);
    h.options = o.present | (active ? OPTION_ACTIVE : 0);
    if (active) {
        h.iss = s->seq;
        h.local_mss = o.mss;
        h.local_wscale = o.wscale;
        h.window = s->window;
        h.tsval = o.tsval;
        h.ts_ns = bpf_ktime_get_boot_ns();
    } else {
        h.irs = s->seq;
        h.peer_mss = o.mss;
        h.peer_wscale = o.wscale;
        h.peer_window = s->window;
        h.peer_tsval = o.tsval;
    }
    bpf_map_update_elem(&half_open, key, &h, BPF_ANY);
}

// The second segment. Returns 0 when it answers no first segment that was seen.
static __always_inline int handshake_answers(struct __sk_buff *skb, struct key *key, const struct segment *s, int from_peer)
{
    struct handshake *h = bpf_map_lookup_elem(&half_open, key);
    struct options o;

    if (!h || s->ack != (from_peer ? h->iss : h->irs) + 1)
        return 0;
    parse_options(skb, s, &o);
    if (!h->answered)
        h->options &= o.present | OPTION_ACTIVE;
    if (from_peer) {
        h->irs = s->seq;
        h->peer_mss = o.mss;
        h->peer_wscale = o.wscale;
        h->peer_window = s->window;
        h->peer_tsval = o.tsval;
    } else {
        h->iss = s->seq;
        h->local_mss = o.mss;
        h->local_wscale = o.wscale;
        h->window = s->window;
        h->tsval = o.tsval;
        h->ts_ns = bpf_ktime_get_boot_ns();
    }
    h->answered = 1;
    return 1;
}

// The peer completed a handshake: gives the connection an entry. Returns 0 when there is none left.
static __always_inline int establish(struct key *key, const struct handshake *h)
{
    __u32 *known = bpf_map_lookup_elem(&tuples, key);
    struct connection *c = 0;
    __u32 index;

    if (known) {
        index = *known;
        c = bpf_map_lookup_elem(&connections, &index);
        if (c && c->permit & PERMIT_OWNED) {
            if (c->iss == h->iss && c->irs == h->irs)
                return 1;
            c->state = STATE_REPLACED;
            c = 0;
        }
    }
    if (!c) {
        if (bpf_map_pop_elem(&vacant, &index)) {
            count(COUNT_FULL);
            return 0;
        }
        c = bpf_map_lookup_elem(&connections, &index);
        if (!c)
            return 0;
    }
    __u64 now = bpf_ktime_get_boot_ns();
    __u8 scaled = h->options & OPTION_WSCALE;
    __builtin_memset(c, 0, sizeof(*c));
    c->key = *key;
    c->iss = h->iss;
    c->irs = h->irs;
    c->local_mss = h->local_mss;
    c->peer_mss = h->peer_mss;
    c->local_wscale = scaled ? h->local_wscale : 0;
    c->peer_wscale = scaled ? h->peer_wscale : 0;
    c->options = h->options;
    c->established_ns = now;
    c->una = h->iss + 1;
    c->peer_window = h->peer_window;
    c->peer_max_window = h->peer_window;
    c->peer_nxt = h->irs + 1;
    c->peer_tsval = h->peer_tsval;
    c->peer_ns = now;
    c->snd_nxt = h->iss + 1;
    c->kernel_ack = h->irs + 1;
    c->sent_ack = h->irs + 1;
    c->window = h->window >> c->local_wscale;
    c->edge = h->irs + 1 + h->window;
    c->tsval = h->tsval;
    c->tsecr = h->peer_tsval;
    c->ts_ns = h->ts_ns;
    c->rel_rcv = h->irs + 1;
    c->rel_snd = h->iss + 1;
    c->state = STATE_OPEN;
    bpf_map_delete_elem(&closed, key);
    if (bpf_map_update_elem(&tuples, key, &index, BPF_ANY)) {
        c->state = 0;
        bpf_map_push_elem(&vacant, &index, BPF_ANY);
        count(COUNT_FULL);
        return 0;
    }
    return 1;
}

// Overwrites selective acknowledgements: they would tell the peer of bytes that the log does not hold.
static __always_inline void strip_sack(struct __sk_buff *skb, const struct segment *s, const struct options *o)
{
    __u8 old[36] = {}, nops[36];
    __u32 len = o->sack_len;

    if (!o->sack_at || len < 10 || len > 34)
        return;
    __builtin_memset(nops, 1, sizeof(nops));
    // Sums go by whole words: the option starts at a multiple of two, and 10, 18, 26 and 34 leave two bytes.
    if (len == 10) {
        if (bpf_skb_load_bytes(skb, o->sack_at, old, 10))
            return;
    } else if (len == 18) {
        if (bpf_skb_load_bytes(skb, o->sack_at, old, 18))
            return;
    } else if (len == 26) {
        if (bpf_skb_load_bytes(skb, o->sack_at, old, 26))
            return;
    } else if (len == 34) {
        if (bpf_skb_load_bytes(skb, o->sack_at, old, 34))
            return;
    } else {
        return;
    }
    __u32 padded = len + 2;
    if (padded > 36)
        return;
    old[padded - 2] = 1;
    old[padded - 1] = 1;
    __s64 diff = bpf_csum_diff((__be32 *)old, padded, (__be32 *)nops, padded, 0);
    if (diff < 0)
        return;
    if (o->sack_at & 1)
        diff = ((diff & 0x00ff00ff) << 8) | ((diff >> 8) & 0x00ff00ff);
    bpf_l4_csum_replace(skb, s->tcp_at + 16, 0, diff, 0);
    bpf_skb_store_bytes(skb, o->sack_at, nops, len, 0);
}

// Cuts the acknowledgement number back to `ack` and widens the window by as much, so that its right
// edge does not move.
static __always_inline void clamp(struct __sk_buff *skb, const struct segment *s, __u32 ack, __u16 window)
{
    __be32 new_ack = bpf_htonl(ack), old_ack = bpf_htonl(s->ack);
    __be16 new_window = bpf_htons(window), old_window = bpf_htons(s->window);

    bpf_l4_csum_replace(skb, s->tcp_at + 16, old_ack, new_ack, 4);
    bpf_skb_store_bytes(skb, s->tcp_at + 8, &new_ack, 4, 0);
    bpf_l4_csum_replace(skb, s->tcp_at + 16, old_window, new_window, 2);
    bpf_skb_store_bytes(skb, s->tcp_at + 14, &new_window, 2, 0);
}

// Whether an answer may leave. One that may not is handed to user space, every time that the kernel tries.
static __always_inline int may_answer(struct __sk_buff *skb, struct key *key, const struct segment *s)
{
    __u32 *iss = bpf_map_lookup_elem(&answered, key);
    struct handshake *h = bpf_map_lookup_elem(&half_open, key);
    struct opening *o;
    __u32 len = skb->len;

    if (iss && *iss == s->seq)
        return 1;
    if (!h || len < 1 || len > ANSWER_LEN)
        return 0;
    o = bpf_ringbuf_reserve(&openings, sizeof(*o), 0);
    if (!o)
        return 0; // the kernel will answer again
    o->key = *key;
    o->len = len;
    o->handshake = *h;
    if (bpf_skb_load_bytes(skb, 0, o->frame, len))
        bpf_ringbuf_discard(o, 0);
    else
        bpf_ringbuf_submit(o, 0);
    return 0;
}

// `expired`: the lease is over.
static __always_inline int gate_segment(struct __sk_buff *skb, struct key *key, const struct segment *s, __u32 flags,
                                        int expired)
{
    struct connection *c;
    struct options o;

    if (expired && !(flags & FLAG_ANSWERS && s->syn && s->has_ack))
        return TC_ACT_SHOT;
    if (s->syn && !s->rst) {
        if (!s->has_ack) {
            handshake_begins(skb, key, s, 1);
            return TC_ACT_OK;
        }
        if (!handshake_answers(skb, key, s, 0)) {
            count(COUNT_UNKNOWN);
            return TC_ACT_SHOT;
        }
        if (flags & FLAG_ANSWERS && !may_answer(skb, key, s)) {
            count(COUNT_ANSWER);
            return TC_ACT_SHOT;
        }
        return TC_ACT_OK;
    }
    c = lookup(key);
    if (!c) {
        if (bpf_map_lookup_elem(&closed, key))
            return TC_ACT_OK;
        count(s->rst ? COUNT_RESET : COUNT_UNKNOWN);
        return TC_ACT_SHOT;
    }
    if (s->rst && !(c->permit & PERMIT_RESET)) {
        count(COUNT_RESET);
        return TC_ACT_SHOT;
    }
    __u32 end = s->seq + s->payload + s->fin;
    // A socket whose holders were killed ends where its queue does, which may be before released bytes.
    if ((s->fin && !(c->permit & PERMIT_FIN)) || (!s->rst && after(end, c->rel_snd))) {
        count(COUNT_UNRELEASED);
        return TC_ACT_SHOT;
    }

    segment_options(skb, s, &o);
    if (!after(c->kernel_ack, s->ack)) {
        c->kernel_ack = s->ack;
        c->window = s->window;
        if (o.present & OPTION_TIMESTAMPS)
            c->tsecr = o.tsecr;
    }
    __u32 limit = c->rel_rcv, ack = s->ack;
    __u32 edge = ack + ((__u32)s->window << c->local_wscale);
    if (after(ack, limit)) {
        __u32 window = s->window + ((ack - limit) >> c->local_wscale);
        if (window > 0xffff)
            window = 0xffff;
        edge = limit + (window << c->local_wscale);
        if (!s->payload && !s->fin && !s->rst && limit == c->sent_ack && !after(edge, c->edge)) {
            count(COUNT_PURE_ACK); // it would say nothing new: user space sends one when the log moves on
            return TC_ACT_SHOT;
        }
        strip_sack(skb, s, &o);
        clamp(skb, s, limit, window);
        ack = limit;
        count(COUNT_CLAMPED);
    }
    if (after(ack, c->sent_ack))
        c->sent_ack = ack;
    if (after(edge, c->edge))
        c->edge = edge;
    if (after(end, c->snd_nxt))
        c->snd_nxt = end;
    if (o.present & OPTION_TIMESTAMPS && !after(c->tsval, o.tsval)) {
        c->tsval = o.tsval;
        c->ts_ns = bpf_ktime_get_boot_ns();
    }
    return TC_ACT_OK;
}

SEC("classifier")
int from_container(struct __sk_buff *skb)
{
    __u32 zero = 0;
    struct config *cfg = bpf_map_lookup_elem(&config, &zero);
    struct segment s = {};
    struct key key = {};
    int verdict = TC_ACT_OK;

    if (!cfg)
        return TC_ACT_SHOT;
    int expired = bpf_ktime_get_boot_ns() >= *(volatile __u64 *)&cfg->lease_ns;
    if (expired) {
        count(COUNT_LEASE);
        if (!(cfg->flags & FLAG_GATE) || skb->protocol != bpf_htons(ETH_P_IP))
            return TC_ACT_SHOT;
    }
    if (cfg->flags & FLAG_GATE && skb->protocol != bpf_htons(ETH_P_ARP)) {
        if (skb->protocol != bpf_htons(ETH_P_IP)) {
            count(COUNT_ETHERTYPE);
            return TC_ACT_SHOT;
        }
        switch (parse_v4(skb, &key, &s, 1)) {
        case MALFORMED:
            count(COUNT_MALFORMED);
            return TC_ACT_SHOT;
        case TCP:
            verdict = gate_segment(skb, &key, &s, cfg->flags, expired);
            break;
        case NOT_TCP:
            break;
        }
        if (expired)
            return TC_ACT_SHOT;
        if (verdict != TC_ACT_OK)
            return verdict;
    }
    if (cfg->flags & FLAG_MASK) {
        __u8 mac[6];
        __builtin_memcpy(mac, cfg->mask, 6);
        if (bpf_skb_store_bytes(skb, 6, mac, 6, 0))
            return TC_ACT_SHOT;
    }
    count(COUNT_PASSED);
    return TC_ACT_OK;
}

// Returns 1 for a segment that must be held.
static __always_inline int observe(struct __sk_buff *skb, struct key *key, const struct segment *s)
{
    struct connection *c;
    struct options o;

    if (s->syn && !s->has_ack) {
        if (!s->rst)
            handshake_begins(skb, key, s, 0);
        return 0;
    }
    struct handshake *h = bpf_map_lookup_elem(&half_open, key);
    if (h) {
        if (s->syn)
            handshake_answers(skb, key, s, 1);
        if (h->answered && s->has_ack && !s->rst && s->ack == h->iss + 1) {
            struct handshake done = *h;
            if (establish(key, &done))
                bpf_map_delete_elem(&half_open, key);
        }
    }
    c = lookup(key);
    if (!c)
        return 0;
    if (c->permit & PERMIT_HELD)
        return 1;
    if (s->rst) {
        if (s->seq == c->kernel_ack || s->seq == c->peer_nxt)
            c->state = STATE_RESET;
        return 0;
    }
    if (s->syn || !s->has_ack)
        return 0;
    segment_options(skb, s, &o);
    if (!after(c->una, s->ack) && !after(s->ack, c->snd_nxt)) {
        __u32 window = (__u32)s->window << c->peer_wscale;
        c->una = s->ack;
        c->peer_window = window;
        if (window > c->peer_max_window)
            c->peer_max_window = window;
    }
    __u32 end = s->seq + s->payload + s->fin;
    if (after(end, c->peer_nxt))
        c->peer_nxt = end;
    if (s->fin)
        c->peer_fin = 1;
    if (o.present & OPTION_TIMESTAMPS && !after(c->peer_tsval, o.tsval))
        c->peer_tsval = o.tsval;
    c->peer_ns = bpf_ktime_get_boot_ns();
    return 0;
}

struct holding {
    struct __sk_buff *skb;
    struct config *cfg;
    __u64 now;
};

// Keeps one piece of a frame; 1 ends the loop.
static long hold_piece(__u32 i, struct holding *h)
{
    __u32 len = h->skb->len, at = i * HELD_DATA;

    if (at >= len)
        return 1;
    __u64 use = __sync_fetch_and_add(&h->cfg->held, 1);
    __u32 slot = use % HELD_SLOTS;
    struct held *e = bpf_map_lookup_elem(&held, &slot);
    if (!e)
        return 1;
    __u32 n = len - at;
    if (n > HELD_DATA)
        n = HELD_DATA;
    *(volatile __u64 *)&e->stamp = 0;
    e->ns = h->now;
    e->len = len;
    e->offset = at;
    if (n < 1 || bpf_skb_load_bytes(h->skb, at, e->data, n))
        return 1;
    *(volatile __u64 *)&e->stamp = use + 1;
    return 0;
}

// Keeps a frame that comes while the container cannot take it. The oldest is overwritten.
static __always_inline void hold(struct __sk_buff *skb, struct config *cfg)
{
    struct holding h = {.skb = skb, .cfg = cfg, .now = bpf_ktime_get_boot_ns()};

    bpf_loop(HELD_CHUNKS, hold_piece, &h, 0);
}

SEC("classifier")
int to_container(struct __sk_buff *skb)
{
    __u32 zero = 0;
    struct config *cfg = bpf_map_lookup_elem(&config, &zero);
    struct segment s = {};
    struct key key = {};

    if (!cfg)
        return TC_ACT_OK;
    if (cfg->flags & FLAG_HOLD) {
        if (skb->protocol == bpf_htons(ETH_P_ARP))
            return TC_ACT_OK;
        if (skb->protocol == bpf_htons(ETH_P_IP)) {
            count(COUNT_HELD);
            hold(skb, cfg);
        }
        return TC_ACT_SHOT;
    }
    if (cfg->flags & FLAG_GATE && skb->protocol == bpf_htons(ETH_P_IP) && parse_v4(skb, &key, &s, 0) == TCP &&
        observe(skb, &key, &s)) {
        count(COUNT_HELD);
        hold(skb, cfg);
        return TC_ACT_SHOT;
    }
    return TC_ACT_OK;
}

char _license[] SEC("license") = "Dual MIT/GPL";
