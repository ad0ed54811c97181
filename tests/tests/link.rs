//! Interfaces as the sensor sees them, in namespaces where they are known.

use capture_user::link::{Link, Promiscuous, XdpHook};
use stillwire_tests::Wire;
use stillwire_tests::traffic::{Frames, Pace};

#[test]
fn an_interface_is_what_it_was_made_to_be() {
    let wire = Wire::with().queues(2).mtu(9000).build().unwrap();
    wire.sensor
        .enter(|| {
            let link = Link::by_name(Wire::SENSOR)?;
            assert_eq!((link.name.as_str(), link.mtu, link.rx_queues), ("tap0", 9000, 2));
            assert!(link.up && link.carrier && !link.loopback, "{link:?}");
            assert_eq!(link.address.len(), 6);
            assert_eq!(link.xdp, None);
            assert_eq!(Link::by_index(link.index)?, link);
            // The other end is in another namespace: neither its name nor its file is here.
            assert!(Link::by_name(Wire::SENDER).is_err());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_wire_that_is_cut_has_no_carrier() {
    let wire = Wire::new().unwrap();
    let look = || wire.sensor.enter(|| Ok(Link::by_name(Wire::SENSOR)?)).unwrap();
    let before = look();
    wire.sender.run("ip", &["link", "set", Wire::SENDER, "down"]).unwrap();
    let cut = look();
    assert!(before.carrier && !cut.carrier && cut.up, "{cut:?}");
    assert!(cut.carrier_changes > before.carrier_changes);
}

#[test]
fn frames_are_counted_as_the_driver_counts_them() {
    let wire = Wire::new().unwrap();
    Frames { count: 100, bytes: 64, flows: 4, pace: Pace::Flood }.send(&wire).unwrap();
    let link = wire.sensor.enter(|| Ok(Link::by_name(Wire::SENSOR)?)).unwrap();
    assert_eq!(link.counters.rx_packets, 100, "{link:?}");
    assert_eq!(link.counters.rx_bytes, 6400, "{link:?}");
}

#[test]
fn somebody_elses_program_is_seen() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let program = capture_user::program::Program::load(Wire::SENSOR, 1)?;
            let link = Link::by_name(Wire::SENSOR)?;
            program.attach(&link, capture_user::args::Mode::Generic)?;
            let xdp = Link::by_name(Wire::SENSOR)?.xdp.expect("a program is attached");
            assert_eq!((xdp.hook, xdp.program_id), (XdpHook::Generic, program.id()));
            program.detach();
            assert_eq!(Link::by_name(Wire::SENSOR)?.xdp, None);
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_default_route_is_found_for_both_families() {
    let wire = Wire::new().unwrap();
    let carries =
        || wire.sensor.enter(|| Ok(Link::by_name(Wire::SENSOR)?.carries_default_route()?)).unwrap();
    let ip = |command: &str| {
        wire.sensor.run("ip", &command.split_whitespace().collect::<Vec<_>>()).unwrap()
    };
    ip("address add 10.9.0.1/24 dev tap0");
    assert!(!carries(), "an address with its network's route is no default route");
    ip("route add default via 10.9.0.2 dev tap0 table 99");
    assert!(carries(), "in whatever table");
    ip("route del default table 99");
    assert!(!carries());
    wire.sensor.set("ipv6/conf/tap0/disable_ipv6", "0").unwrap();
    ip("address add fd09::1/64 dev tap0 nodad");
    ip("route add default via fd09::2 dev tap0");
    assert!(carries());
}

#[test]
fn promiscuous_mode_lasts_as_long_as_it_is_held() {
    let wire = Wire::new().unwrap();
    let promiscuity = || {
        let text = wire.sensor.run("ip", &["-details", "link", "show", Wire::SENSOR]).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "promiscuity").unwrap();
        words[at + 1].to_owned()
    };
    assert_eq!(promiscuity(), "0");
    let held = wire.sensor.enter(|| Ok(Promiscuous::on(&Link::by_name(Wire::SENSOR)?)?)).unwrap();
    assert_eq!(promiscuity(), "1");
    drop(held);
    assert_eq!(promiscuity(), "0");
}

#[test]
fn offloads_that_change_frames_are_told() {
    let wire = Wire::new().unwrap();
    let offloads = || wire.sensor.enter(|| Ok(Link::by_name(Wire::SENSOR)?.offloads())).unwrap();
    let before = offloads();
    assert!(!before.rx_vlan && !before.gro && !before.lro, "{before:?}");
    wire.sensor.run("ethtool", &["-K", Wire::SENSOR, "gro", "on", "rxvlan", "on"]).unwrap();
    let after = offloads();
    assert!(after.rx_vlan && after.gro && !after.lro, "{after:?}");
}
