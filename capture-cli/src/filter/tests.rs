use std::net::IpAddr;
use std::sync::Arc;

use capture_flow::key::{Address, MacAddr, Protocol};
use capture_flow::record::{ConnState, Service};
use capture_flow::time::Nanos;
use proptest::prelude::*;

use super::*;
use crate::row::{Row, RowEnd};

fn end(addr: &str, port: u16, bytes: Option<u64>, local: Option<bool>) -> RowEnd {
    let addr = addr.parse().map(Address::Ip).unwrap_or(Address::Mac(MacAddr([2, 0, 0, 0, 0, 1])));
    let l2_addr = Some(MacAddr([2, 0, 0, 0, 0, port as u8]));
    RowEnd { addr, port, l2_addr, bytes, pkts: 3, ip_bytes: 500, local }
}

/// 10.0.0.1:40000 → 192.0.2.7:22, ssh, 100 bytes out and 300 back in 2.5 s.
fn row() -> Row {
    Row {
        ts: Nanos(0),
        last_ts: Nanos(2_500_000_000),
        duration: Some(2.5),
        uid: "C0000000000000001A".into(),
        sensor: "s1".into(),
        iface: "eth0".into(),
        orig: end("10.0.0.1", 40000, Some(100), Some(true)),
        resp: end("192.0.2.7", 22, Some(300), Some(false)),
        proto: "tcp".into(),
        protocol: Protocol::TCP,
        service: Some("ssh".into()),
        server_name: None,
        alpn: None,
        conn_state: "SF".into(),
        history: "ShADadFf".into(),
        missed_bytes: 0,
        vlan: Some(5),
        inner_vlan: None,
        tunnel_parents: None,
        community_id: None,
        direction_certain: true,
        fragment_overlap: false,
        join_certain: true,
        update: 0,
        is_final: true,
        end_reason: "closed".into(),
        frames: 6,
        frame_bytes: 1000,
        flushed_at: Nanos(3_000_000_000),
        pcap_first: None,
        pcap_last: None,
    }
}

fn ask(filter: &str, row: &Row) -> Truth {
    parse(filter).unwrap_or_else(|e| panic!("{filter}: {}", e.render(filter))).expr.matches(row)
}

#[test]
fn tests_match_what_they_name() {
    let row = row();
    for yes in [
        "",
        "host 10.0.0.1",
        "src host 10.0.0.1 and dst port ssh",
        "10.0.0.1",
        "10.0.0.0/24",
        "C0000000000000001A",
        "orig 10.0.0.1 and resp net 192.0.2.0/24",
        "net 10",
        "net 192.0.2",
        "net 10.0.0.0 mask 255.0.0.0",
        "tcp port 22",
        "tcp dst port 80 or 22",
        "host 1.1.1.1 or 192.0.2.7",
        "portrange 20-30",
        "dst port (21 or 22)",
        "src or dst port 22",
        "src and dst net 0.0.0.0/0",
        "ip and not ip6",
        "ip proto 6",
        "proto \\tcp",
        "ether host 02:00:00:00:00:16",
        "ether dst 02-00-00-00-00-16",
        "vlan",
        "vlan 5 and !(vlan 6)",
        "outbound && !inbound",
        "state SF",
        "state = sf || state rej",
        "state != S0",
        "service ssh or http",
        "bytes = 400",
        "bytes 400",
        "orig bytes < 0.2k and resp_bytes >= 300",
        "pkts > 5",
        "duration > 2s and duration <= 2500ms",
        "duration < 1h30m",
        "iface eth0 and sensor \"s1\"",
        "uid C0000000000000001A",
    ] {
        assert_eq!(ask(yes, &row), Truth::True, "{yes}");
    }
    for no in [
        "host 10.0.0.2",
        "src host 192.0.2.7",
        "dst port 40000",
        "src and dst net 10.0.0.0/8",
        "host ::1",
        "udp",
        "icmp",
        "arp",
        "ip6",
        "vlan 6",
        "internal",
        "state S0 or REJ",
        "service http",
        "bytes > 400",
        "duration > 3",
        "iface eth1",
        "not tcp port 22",
    ] {
        assert_eq!(ask(no, &row), Truth::False, "{no}");
    }
}

#[test]
fn a_uid_needs_no_keyword() {
    for uid in ["CGFvgANBZufIEalfeW", "C00000000000000001", "CHhAvVGS1DHFjwGM9"] {
        let uid_test = Expr::Test(Test::Text(TextColumn::Uid, uid.to_owned()));
        assert_eq!(parse(uid).unwrap().expr, uid_test);
    }
}

#[test]
fn a_guessed_originator_leaves_open_only_what_depends_on_it() {
    let row = Row { direction_certain: false, ..row() };
    assert_eq!(ask("orig host 10.0.0.1", &row), Truth::Maybe);
    assert_eq!(ask("resp host 10.0.0.1", &row), Truth::Maybe);
    assert_eq!(ask("resp host 10.0.0.9", &row), Truth::False);
    assert_eq!(ask("host 10.0.0.1 and port 22", &row), Truth::True);
    // True whichever way round, although each half alone is open.
    assert_eq!(ask("orig host 10.0.0.1 or resp host 10.0.0.1", &row), Truth::True);
    // The pair was never seen in this combination, in neither direction.
    assert_eq!(ask("orig host 10.0.0.1 and orig port 22", &row), Truth::False);
    assert_eq!(ask("not resp host 10.0.0.1", &row), Truth::Maybe);
    assert_eq!(ask("inbound", &row), Truth::Maybe);
    assert_eq!(ask("internal", &row), Truth::False);
}

#[test]
fn a_syn_from_either_end_leaves_the_originator_open() {
    for history in ["SsHADad", "ShHADad"] {
        let row = Row { history: history.into(), ..row() };
        assert_eq!(ask("resp host 10.0.0.1 and resp port 40000", &row), Truth::Maybe, "{history}");
        assert_eq!(ask("host 10.0.0.1 and port 22", &row), Truth::True, "{history}");
        assert_eq!(ask("port 80", &row), Truth::False, "{history}");
    }
}

#[test]
fn contradicting_fragments_leave_all_but_the_addresses_open() {
    let row = Row { fragment_overlap: true, ..row() };
    for open in ["port 80", "not port 22", "udp", "service http", "state S0", "bytes > 1M"] {
        assert_eq!(ask(open, &row), Truth::Maybe, "{open}");
    }
    assert_eq!(ask("host 10.0.0.9", &row), Truth::False);
    assert_eq!(ask("host 10.0.0.1", &row), Truth::True);
}

#[test]
fn only_the_first_frames_link_is_known_to_who_proves() {
    let several = Row { frames: 2, ..row() };
    let single = Row { frames: 1, ..row() };
    let proving = Doubt { link: true, ..Doubt::default() };
    for (filter, logged) in [
        ("vlan 5", Truth::True),
        ("vlan 20", Truth::False),
        ("iface eth1", Truth::False),
        ("ether host 02:00:00:00:00:99", Truth::False),
    ] {
        let expr = parse(filter).unwrap().expr;
        assert_eq!(expr.matches(&several), logged, "{filter}");
        assert_eq!(expr.judge(&single, proving), logged, "{filter}");
        let open = if logged == Truth::True { logged } else { Truth::Maybe };
        assert_eq!(expr.judge(&several, proving), open, "{filter}");
    }
    assert_eq!(parse("host 10.0.0.9").unwrap().expr.judge(&several, proving), Truth::False);
}

#[test]
fn what_a_row_does_not_say_stays_open() {
    let unknown = Row { service: None, ..row() };
    assert_eq!(ask("service ssh", &unknown), Truth::Maybe);
    assert_eq!(ask("service ssh and port 23", &unknown), Truth::False);
    let silent = Row { service: None, history: "S".into(), ..row() };
    assert_eq!(ask("service ssh", &silent), Truth::False);

    let mut fragment = row();
    (fragment.orig.port, fragment.resp.port) = (0, 0);
    assert_eq!(ask("port 22", &fragment), Truth::False, "port 0 is a port");
    (fragment.orig.pkts, fragment.resp.pkts) = (0, 0);
    (fragment.history, fragment.service) = ("".into(), None);
    for open in ["port 22", "port 0", "service ssh", "state SF", "bytes > 1M", "duration > 1h"] {
        assert_eq!(ask(open, &fragment), Truth::Maybe, "{open}");
    }
    assert_eq!(ask("host 10.0.0.9", &fragment), Truth::False);
    assert_eq!(ask("tcp", &fragment), Truth::True);
    assert_eq!(ask("udp port 22", &fragment), Truth::False);

    let mut unset = row();
    (unset.orig.bytes, unset.resp.bytes) = (None, None);
    assert_eq!(ask("bytes > 10", &unset), Truth::Maybe);
    assert_eq!(ask("bytes > 1000", &unset), Truth::False);
    assert_eq!(ask("bytes <= 1000", &unset), Truth::True);
    assert_eq!(ask("bytes = 7", &unset), Truth::Maybe);
    assert_eq!(ask("bytes != 1001", &unset), Truth::True);

    let mut nowhere = row();
    (nowhere.orig.local, nowhere.resp.local) = (None, None);
    assert_eq!(ask("inbound", &nowhere), Truth::Maybe);
}

#[test]
fn sessions_without_ip_answer_questions_about_ip() {
    let mut arp = row();
    arp.protocol = Protocol::Ether(0x0806);
    (arp.proto, arp.service) = ("arp".into(), None);
    arp.orig.addr = Address::Mac(MacAddr([2, 0, 0, 0, 0, 9]));
    arp.resp.addr = Address::Mac(MacAddr([255; 6]));
    for no in ["host 10.0.0.1", "net 0.0.0.0/0", "port 22", "tcp", "ip", "service ssh"] {
        assert_eq!(ask(no, &arp), Truth::False, "{no}");
    }
    assert_eq!(ask("arp and ether host 02:00:00:00:00:09", &arp), Truth::True);
    let undecodable = Row { protocol: Protocol::Ether(0x0800), ..arp };
    for open in ["host 10.0.0.1", "tcp port 22", "icmp", "service ssh", "not udp"] {
        assert_eq!(ask(open, &undecodable), Truth::Maybe, "{open}");
    }
    assert_eq!(ask("ip", &undecodable), Truth::True);
    assert_eq!(ask("ip6", &undecodable), Truth::False);
}

#[test]
fn and_and_or_bind_alike_and_say_so_where_it_matters() {
    let parsed = parse("port 1 or port 2 and tcp").unwrap();
    assert_eq!(parsed.expr.to_string(), "(port 1 or port 2) and tcp");
    assert!(parsed.note.unwrap().contains("(port 1 or port 2) and tcp"));
    for clear in ["port 1 and tcp or port 2", "port 1 or (port 2 and tcp)", "port 1 or 2 or 3"] {
        assert_eq!(parse(clear).unwrap().note, None, "{clear}");
    }
}

#[test]
fn errors_point_and_suggest() {
    for (filter, place, hint) in [
        ("hots 10.0.0.1", "hots", "host"),
        ("host www.example.org", "www.example.org", "address"),
        ("host 10.0.0.1 port 22", "port", "`and` or `or`"),
        ("net 10.0.0.1/8", "10.0.0.1/8", "net 10.0.0.0/8"),
        ("host 10.0.0.0/8", "10.0.0.0/8", "net 10.0.0.0/8"),
        ("port 70000", "70000", "65535"),
        ("port htpps", "htpps", "https"),
        ("port 1-10", "1-10", "portrange 1-10"),
        ("portrange 10-1", "10-1", "1-10"),
        ("state XX", "XX", "RSTO"),
        ("service gopher", "gopher", "dns"),
        ("tcp and (port 22", "(", "never closed"),
        ("tcp)", ")", "never opened"),
        ("tcp and", "", "breaks off"),
        ("tcp & port 2", "&", "&&"),
        ("bytes > lots", "lots", "number"),
        ("arp host 10.0.0.1", "arp", "ether host"),
        ("icmp port 3", "port", "no ports"),
        ("tcp[13] = 2", "tcp[13]", "frames"),
        ("iface \"eth0", "\"eth0", "never closed"),
        ("host 10.0.0.1 or 10.0.0.300", "10.0.0.300", "255"),
        ("ether", "", "MAC"),
        ("vlan 5000", "5000", "4095"),
        ("duration > 5x", "5x", "1h30m"),
    ] {
        let error = parse(filter).expect_err(filter);
        let place_found = &filter[error.span.clone()];
        let text = error.render(filter);
        assert!(place_found.contains(place), "{filter}: points at `{place_found}`");
        assert!(text.contains(hint), "{filter}: says\n{text}");
        assert!(text.contains('^'), "{text}");
    }
    let error = parse("host\u{1b}[2J").expect_err("an escape sequence is no address");
    assert!(!error.render("host\u{1b}[2J").contains('\u{1b}'));
}

#[test]
fn deep_nesting_is_refused_not_a_stack_overflow() {
    let deep = format!("{}tcp{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(parse(&deep).is_err());
    assert!(parse(&"not ".repeat(100_000)).is_err());
    assert!(parse(&"tcp or udp and ".repeat(100_000)).is_err());
    // A long list of hosts is flat.
    let list: Vec<String> = (0..5000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    assert!(parse(&format!("host {}", list.join(" or "))).is_ok());
}

#[test]
fn clauses_hold_for_every_match() {
    let clauses = |filter: &str| parse(filter).unwrap().expr.clauses();
    assert_eq!(clauses("host 1.2.3.4 and tcp").len(), 1);
    assert_eq!(clauses("host 1.2.3.4 or port 5"), vec![]);
    assert_eq!(clauses("not host 1.2.3.4"), vec![]);
    assert_eq!(clauses("port 1 or 2"), vec![Clause::Port(vec![(1, 1), (2, 2)])]);
    let hosts = parse("(host 1.1.1.1 or 2.2.2.2) and port 9").unwrap().expr.hosts();
    assert_eq!(hosts.unwrap().len(), 2);
    assert_eq!(parse("net 10.0.0.0/8").unwrap().expr.hosts(), None);
}

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Any), Just(End::Orig), Just(End::Resp), Just(End::Both)]
}

fn any_cmp() -> impl Strategy<Value = Cmp> {
    prop_oneof![
        Just(Cmp::Lt),
        Just(Cmp::Le),
        Just(Cmp::Eq),
        Just(Cmp::Ne),
        Just(Cmp::Ge),
        Just(Cmp::Gt)
    ]
}

fn any_test() -> impl Strategy<Value = Test> {
    let net = (any::<IpAddr>(), 0u8..=128)
        .prop_map(|(addr, bits)| Net::new(addr, bits).unwrap_or_else(|| Net::host(addr)));
    let near_net = prop_oneof![
        net,
        Just(Net::host("10.0.0.1".parse().unwrap())),
        Just(Net::host("192.0.2.7".parse().unwrap()))
    ];
    // A count of one end or of both together; `orig and resp bytes` is two tests.
    let count_end = prop_oneof![Just(End::Any), Just(End::Orig), Just(End::Resp)];
    prop_oneof![
        (any_end(), near_net).prop_map(|(end, net)| Test::Net(end, net)),
        (any_end(), any::<u16>(), any::<u16>()).prop_map(|(end, a, b)| Test::Port(
            end,
            a.min(b),
            a.max(b)
        )),
        Just(Test::Ipv4),
        Just(Test::Ipv6),
        Just(Test::Icmp),
        any::<u8>().prop_map(Test::IpProto),
        any::<u16>()
            .prop_filter("IP has its own tests", |n| *n != 0x0800 && *n != 0x86dd)
            .prop_map(Test::EtherProto),
        (any_end(), any::<[u8; 6]>()).prop_map(|(end, mac)| Test::Mac(end, MacAddr(mac))),
        proptest::option::of(0u16..4096).prop_map(Test::Vlan),
        proptest::sample::select(Locality::ALL.to_vec()).prop_map(Test::Locality),
        proptest::sample::select(ConnState::ALL.to_vec()).prop_map(Test::State),
        proptest::sample::select(Service::ALL.to_vec()).prop_map(Test::Service),
        (any::<bool>(), count_end, any_cmp(), 0u64..1000).prop_map(|(bytes, end, cmp, value)| {
            Test::Count(if bytes { Count::Bytes } else { Count::Pkts }, end, cmp, value)
        }),
        (any_cmp(), 0i64..i64::MAX).prop_map(|(cmp, nanos)| Test::Duration(cmp, nanos)),
        "[a-zA-Z0-9 ._()!-]{0,12}".prop_map(|text| Test::Text(TextColumn::Iface, text)),
    ]
}

fn any_expr() -> impl Strategy<Value = Expr> {
    any_test().prop_map(Expr::Test).prop_recursive(5, 40, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::Or),
            inner.prop_map(|e| Expr::Not(Box::new(e))),
        ]
    })
}

prop_compose! {
    fn any_row()(
        certain in any::<bool>(),
        service in proptest::option::of(Just(Arc::<str>::from("ssh"))),
        ports in prop_oneof![Just((0u16, 0u16)), Just((40000, 22)), any::<(u16, u16)>()],
        bytes in any::<(Option<u16>, Option<u16>)>(),
        local in any::<(Option<bool>, Option<bool>)>(),
        protocol in prop_oneof![
            Just(Protocol::TCP), Just(Protocol::UDP), Just(Protocol::ICMP),
            Just(Protocol::Ether(0x0806)), Just(Protocol::Ether(0x0800)),
        ],
    ) -> Row {
        let mut row = Row { direction_certain: certain, service, protocol, ..row() };
        (row.orig.port, row.resp.port) = ports;
        if ports == (0, 0) {
            (row.orig.pkts, row.resp.pkts) = (0, 0);
            row.history = "".into();
        }
        (row.orig.bytes, row.resp.bytes) = (bytes.0.map(u64::from), bytes.1.map(u64::from));
        (row.orig.local, row.resp.local) = local;
        if let Protocol::Ether(_) = protocol {
            row.orig.addr = Address::Mac(MacAddr([1; 6]));
            row.resp.addr = Address::Mac(MacAddr([2; 6]));
        }
        row
    }
}

proptest! {
    #[test]
    fn printing_and_reading_back_changes_nothing(expr in any_expr()) {
        let text = expr.to_string();
        let read = parse(&text).map_err(|e| TestCaseError::fail(e.render(&text)))?;
        prop_assert_eq!(read.expr, expr);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,60}", words in proptest::collection::vec(
        proptest::sample::select(vec!["host", "src", "and", "or", "not", "(", ")", "port", "22",
            "net", "10.0.0.0/8", "ether", "vlan", "bytes", ">", "tcp", "mask", "proto", "!="]), 0..12)) {
        for filter in [text, words.join(" ")] {
            if let Err(error) = parse(&filter) {
                prop_assert!(error.render(&filter).contains('^'));
            }
        }
    }

    #[test]
    fn the_laws_of_logic_hold(a in any_expr(), b in any_expr(), row in any_row()) {
        let not = |e: &Expr| Expr::Not(Box::new(e.clone()));
        let and = |a: &Expr, b: &Expr| Expr::And(vec![a.clone(), b.clone()]);
        let or = |a: &Expr, b: &Expr| Expr::Or(vec![a.clone(), b.clone()]);
        prop_assert_eq!(not(&not(&a)).matches(&row), a.matches(&row));
        prop_assert_eq!(not(&a).matches(&row), !a.matches(&row));
        prop_assert_eq!(and(&a, &b).matches(&row), and(&b, &a).matches(&row));
        prop_assert_eq!(not(&and(&a, &b)).matches(&row), or(&not(&a), &not(&b)).matches(&row));
        prop_assert_ne!(and(&a, &not(&a)).matches(&row), Truth::True);
        prop_assert_ne!(or(&a, &not(&a)).matches(&row), Truth::False);
    }

    #[test]
    fn swapping_the_ends_of_an_uncertain_row_changes_no_answer(a in any_expr(), row in any_row()) {
        let row = Row { direction_certain: false, ..row };
        let swapped = Row { orig: row.resp.clone(), resp: row.orig.clone(), ..row.clone() };
        prop_assert_eq!(a.matches(&row), a.matches(&swapped));
    }

    /// Certain answers stay what they are when the row becomes certain.
    #[test]
    fn maybe_covers_every_way_it_could_be(a in any_expr(), row in any_row()) {
        let open = Row { direction_certain: false, ..row.clone() }.clone();
        let known = Row { direction_certain: true, ..row };
        let swapped = Row { orig: known.resp.clone(), resp: known.orig.clone(), ..known.clone() };
        let answer = a.matches(&open);
        if answer != Truth::Maybe {
            prop_assert_eq!(a.matches(&known), answer);
            prop_assert_eq!(a.matches(&swapped), answer);
        }
    }

    #[test]
    fn no_match_escapes_the_clauses(a in any_expr(), row in any_row()) {
        if a.matches(&row) == Truth::False {
            return Ok(());
        }
        for clause in a.clauses() {
            let holds = match &clause {
                Clause::Address(nets) => row.may_hide_ip() || [&row.orig, &row.resp].iter().any(
                    |end| matches!(end.addr, Address::Ip(addr) if nets.iter().any(|n| n.contains(addr)))),
                Clause::Port(ranges) => row.may_hide_ip() || row.is_fragments_only()
                    || [&row.orig, &row.resp].iter().any(
                        |end| ranges.iter().any(|(a, b)| (*a..=*b).contains(&end.port))),
                Clause::Uid(uids) => uids.iter().any(|uid| **uid == *row.uid),
            };
            prop_assert!(holds, "{:?}", clause);
        }
    }
}
