//! What the programs know of a flow: who began it, how far it got, and for how long its ports are its own.

use crate::{
    flows::every_flow,
    packet::{ACK, FIN, Packet, RST, SYN},
    rig::{At, HOOKS, Rig, on_node},
    trip::Trip,
    world::{ORIGINS, World},
};
use proxy::{
    model::Protocol,
    plan::trace::{self, Origin},
};
use proxy_common::{
    abi::{flow_flags, idle},
    verdict::Verdict,
};

/// A flow belongs to whoever began it last: the same tuple at another side of the node is another client, which opens
/// the flow anew where flows begin (SYN, UDP), and elsewhere passes without harm to the flow.
#[test]
fn a_flow_belongs_where_it_began() {
    every_flow("a_flow_belongs_where_it_began", |rig, world, trip| {
        let (from, to) = (trip.first.source, trip.first.destination);
        let own = rig.entry(trip.origin, to.ip());
        let others = ORIGINS.into_iter().filter(|origin| *origin != trip.origin);
        let sides: Vec<_> = others.map(|origin| (origin, rig.entry(origin, to.ip()))).collect();
        for at in [At::ToPod, At::ToNet] {
            rig.passes(at, &trip.first, &[Verdict::NotService])?;
        }
        if world.protocol == Protocol::Tcp {
            for (_, at) in &sides {
                for flags in [ACK, SYN | ACK, FIN | ACK, RST, 0] {
                    rig.passes(*at, &Packet::tcp(from, to, flags, b""), &[Verdict::NotService])?;
                }
            }
            let untouched = flow_flags::CONFIRMED | flow_flags::CLOSED;
            if trip.entries(rig)?.iter().any(|entry| entry.flags & untouched != 0) {
                return Err("strangers changed the flow".into());
            }
        }
        trip.again(rig)?;
        trip.answered(rig)?;
        for (origin, at) in sides {
            let wrong = |error: String| format!("{origin:?}: {error}");
            let targets = world.targets(rig, origin, from, &[trip.target.ip()]);
            let stranger = Trip::open(rig, origin, &trip.first, &targets).map_err(wrong)?;
            stranger.again(rig).map_err(wrong)?;
            if world.protocol == Protocol::Tcp {
                rig.passes(own, &Packet::tcp(from, to, ACK, b"more"), &[Verdict::NotService])?;
                stranger.again(rig).map_err(wrong)?;
            }
            let target = trace::Target {
                addr: trip.target,
                masquerade: trip.masqueraded,
            };
            let back = Trip::open(rig, trip.origin, &trip.first, &[target])?;
            back.again(rig)?;
            back.answered(rig)?;
            if world.protocol == Protocol::Tcp {
                rig.passes(at, &Packet::tcp(from, to, ACK, b"more"), &[Verdict::NotService])?;
            }
        }
        Ok(())
    });
}

/// One masquerade port: one client at a time, until its flow has ended or been idle for long enough.
#[test]
fn masquerade_ports_run_out() {
    on_node("masquerade_ports_run_out", |mut rig| {
        rig.change_node(|node| (node.snat_port_first, node.snat_port_last) = (40_000, 40_000));
        for world in World::all() {
            let backend = world.there(2);
            world.serve(&mut rig, &[backend]);
            let (one, two) = (
                world.client(Origin::Outside, 1_111),
                world.client(Origin::Outside, 2_222),
            );
            let targets = world.targets(&rig, Origin::Outside, one, &[backend]);
            let open =
                |rig: &mut Rig, client| Trip::open(rig, Origin::Outside, &world.first(client, world.vip()), &targets);
            let refused = |rig: &mut Rig, client| rig.refuses(&world.first(client, world.vip()));
            let first = open(&mut rig, one).unwrap();
            assert_eq!(first.source.port(), 40_000);
            refused(&mut rig, two);
            // The first client goes on undisturbed.
            first.again(&mut rig).unwrap();
            first.answered(&mut rig).unwrap();
            let number = world.protocol.number();
            let limit = if world.protocol == Protocol::Tcp {
                idle::TCP
            } else {
                idle::UDP
            };
            rig.age_flow(number, first.target, first.source, limit - 30 * idle::SECOND);
            refused(&mut rig, two);
            rig.age_flow(number, first.target, first.source, 31 * idle::SECOND);
            let second = open(&mut rig, two).unwrap();
            assert_eq!(second.source.port(), 40_000);
            second.answered(&mut rig).unwrap();
            if world.protocol == Protocol::Tcp {
                second
                    .answered_with(&mut rig, &Packet::tcp(second.target, second.source, RST, b""))
                    .unwrap();
                refused(&mut rig, one);
                rig.age_flow(number, second.target, second.source, idle::CLOSED);
                open(&mut rig, one).unwrap();
            }
        }
    });
}

/// A connection that the client never went on with holds its masquerade port for a minute, whatever its backend says.
#[test]
fn an_unconfirmed_connection_is_soon_forgotten() {
    on_node("an_unconfirmed_connection_is_soon_forgotten", |mut rig| {
        rig.change_node(|node| (node.snat_port_first, node.snat_port_last) = (40_000, 40_000));
        for world in World::of(Protocol::Tcp) {
            let backend = world.there(2);
            world.serve(&mut rig, &[backend]);
            let clients = [1_111, 2_222].map(|port| world.client(Origin::Outside, port));
            let targets = world.targets(&rig, Origin::Outside, clients[0], &[backend]);
            let [one, two] = clients.map(|client| world.first(client, world.vip()));
            let stray = Trip::open(&mut rig, Origin::Outside, &one, &targets).unwrap();
            stray.answered(&mut rig).unwrap();
            stray.forward(&mut rig, &one).unwrap();
            rig.age_flow(6, stray.target, stray.source, idle::UNCONFIRMED - 30 * idle::SECOND);
            rig.refuses(&two);
            rig.age_flow(6, stray.target, stray.source, 30 * idle::SECOND);
            let real = Trip::open(&mut rig, Origin::Outside, &two, &targets).unwrap();
            real.again(&mut rig).unwrap();
            // The first client does not go on under a port that is another's now.
            rig.refuses(&one);
            rig.refuses(&Packet::tcp(one.source, one.destination, ACK, b"late"));
            rig.age_flow(6, real.target, real.source, idle::UNCONFIRMED + 30 * idle::SECOND);
            rig.refuses(&one);
            real.answered(&mut rig).unwrap();
        }
    });
}

/// What both entries of a flow know: the client's first segment after its SYN confirms it, anybody's end closes it.
#[test]
fn both_entries_know_how_a_connection_stands() {
    every_flow("both_entries_know_how_a_connection_stands", |rig, world, trip| {
        let (from, to) = (trip.first.source, trip.first.destination);
        let stands = |rig: &mut Rig, want: u32| {
            let entries = trip.entries(rig)?.map(|entry| entry.flags);
            let got = entries.map(|flags| flags & (flow_flags::CONFIRMED | flow_flags::CLOSED));
            if got == [want; 2] {
                Ok(())
            } else {
                Err(format!("{entries:?}, not {want}"))
            }
        };
        stands(rig, 0)?;
        trip.forward(rig, &trip.first)?;
        trip.answered(rig)?;
        if world.protocol == Protocol::Udp {
            return stands(rig, 0);
        }
        trip.answered_with(rig, &Packet::tcp(trip.target, trip.source, ACK, b"early"))?;
        stands(rig, 0)?;
        trip.forward(rig, &Packet::tcp(from, to, ACK, b""))?;
        stands(rig, flow_flags::CONFIRMED)?;
        trip.answered_with(rig, &Packet::tcp(trip.target, trip.source, FIN | ACK, b""))?;
        stands(rig, flow_flags::CONFIRMED | flow_flags::CLOSED)?;
        // A half that is lost comes back closed.
        rig.forget_flow(6, trip.target, trip.source);
        rig.age_flow(6, from, to, 2 * idle::SECOND);
        trip.forward(rig, &Packet::tcp(from, to, ACK, b""))?;
        stands(rig, flow_flags::CONFIRMED | flow_flags::CLOSED)?;
        // A new connection has to begin.
        let target = trace::Target {
            addr: trip.target,
            masquerade: trip.masqueraded,
        };
        let next = Trip::open(rig, trip.origin, &trip.first, &[target])?;
        next.keeps_port()?;
        stands(rig, 0)?;
        next.forward(rig, &Packet::tcp(from, to, RST, b""))?;
        stands(rig, flow_flags::CONFIRMED | flow_flags::CLOSED)
    });
}

/// SYN and ACK answer somebody: they belong to a flow, or to a socket that happens to have a frontend's port.
#[test]
fn an_answer_opens_nothing() {
    on_node("an_answer_opens_nothing", |mut rig| {
        for direct in [false, true] {
            rig.set_direct(direct);
            for world in World::of(Protocol::Tcp) {
                for backends in [&[world.here(1), world.there(2)][..], &[]] {
                    world.serve(&mut rig, backends);
                    for origin in ORIGINS {
                        for frontend in [world.vip(), world.external(), world.node_port()] {
                            let client = world.client(origin, 25_000);
                            let answer = Packet::tcp(client, frontend, SYN | ACK, b"");
                            for at in HOOKS {
                                rig.passes(at, &answer, &[Verdict::NotService])
                                    .unwrap_or_else(|error| panic!("{world:?} {origin:?} {frontend}: {error}"));
                            }
                            assert_eq!(rig.flow(6, client, frontend), None);
                        }
                    }
                }
            }
        }
    });
}
