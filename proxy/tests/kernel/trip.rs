//! One flow through the node: its first packet, later ones, and the reply, at every hook that they pass.

use crate::{
    memory::Remembered,
    packet::{ACK, Body, Packet, SYN, requote, tuple},
    rig::{At, NEXT, Outcome, REDIRECT, Rig, SNAT_PORTS, SNAT_V4, SNAT_V6, Way, same},
};
use proxy::plan::trace::{Origin, Target};
use proxy_common::verdict::Verdict;
use std::net::{IpAddr, SocketAddr};

/// A flow that was opened.
#[derive(Clone, Debug)]
pub(crate) struct Trip {
    pub(crate) origin: Origin,
    /// As the client sent it.
    pub(crate) first: Packet,
    /// As the backend sees it.
    pub(crate) source: SocketAddr,
    /// The backend.
    pub(crate) target: SocketAddr,
    pub(crate) masqueraded: bool,
    /// The frontend's address is the node's own.
    to_node: bool,
}

/// What a program does with a packet that it sends on itself: action, hops taken, hardware addresses zeroed.
struct Sent {
    action: i32,
    hops: u8,
    to_self: bool,
}

const UNSENT: Sent = Sent {
    action: NEXT,
    hops: 0,
    to_self: false,
};

/// How a packet is counted that is none of the hook's business, a later fragment the other way.
const PASSED: [Verdict; 2] = [Verdict::NotService, Verdict::NotTranslatable];

/// What must become of `packet` once its tuple is `source` → `destination`.
fn outcome(packet: &Packet, source: SocketAddr, destination: SocketAddr, sent: &Sent, verdict: Verdict) -> Outcome {
    let mut packet = packet.between(source, destination).hopped(sent.hops);
    if sent.to_self {
        packet.ethernet = [0; 12];
    }
    Outcome {
        action: sent.action,
        verdict,
        frame: packet.encode(),
    }
}

/// The way of a packet that is sent on from `at`; `own` if it carries one of the node's addresses.
fn sent(rig: &Rig, at: At, destination: IpAddr, own: bool) -> Sent {
    let to_self = rig.way(destination) == Way::Node;
    // A stranger's packet to the node goes up the stack where it came from, the only place where it is expected.
    if to_self && (at == At::Loopback || !own) {
        return UNSENT;
    }
    Sent {
        action: REDIRECT,
        // Whoever routes takes one; the node's own packets are not routed through it.
        hops: u8::from(!to_self && matches!(at, At::FromPod | At::FromNet)),
        to_self,
    }
}

impl Trip {
    /// Sends the first packet and checks that it goes to one of `targets` as it should.
    pub(crate) fn open(rig: &mut Rig, origin: Origin, first: &Packet, targets: &[Target]) -> Result<Self, String> {
        Self::open_as(rig, origin, first, targets, Verdict::NewFlow)
    }

    /// As [`Trip::open`], counted as `verdict`.
    pub(crate) fn open_as(
        rig: &mut Rig,
        origin: Origin,
        first: &Packet,
        targets: &[Target],
        verdict: Verdict,
    ) -> Result<Self, String> {
        let at = rig.entry(origin, first.destination.ip());
        let got = rig.run(at, &first.encode());
        if got.verdict != verdict {
            return Err(format!("{:?} action {}, not {verdict:?}", got.verdict, got.action));
        }
        let (source, destination) = tuple(&got.frame);
        let Some(target) = targets.iter().find(|target| target.addr == destination) else {
            return Err(format!("sent to {destination}, not to one of {targets:?}"));
        };
        let trip = Self {
            origin,
            first: first.clone(),
            source,
            target: destination,
            masqueraded: target.masquerade,
            to_node: rig.view.addresses.contains(&first.destination.ip()),
        };
        trip.check_source()?;
        same(&trip.forwarded(rig, first, verdict), &got)?;
        trip.leaves(rig, first)?;
        Ok(trip)
    }

    fn check_source(&self) -> Result<(), String> {
        let client = self.first.source;
        let wrong = |want: &dyn std::fmt::Debug| Err(format!("source {}, not {want:?}", self.source));
        if !self.masqueraded {
            return if self.source.ip() == client.ip() {
                Ok(())
            } else {
                wrong(&client)
            };
        }
        let snat: IpAddr = if client.is_ipv4() {
            SNAT_V4.into()
        } else {
            SNAT_V6.into()
        };
        if self.source.ip() == snat { Ok(()) } else { wrong(&snat) }
    }

    /// Checks that the client's port was kept: the rule while no other flow has the same reply tuple.
    pub(crate) fn keeps_port(&self) -> Result<(), String> {
        let own = self.first.source.port();
        let right = if self.masqueraded && !SNAT_PORTS.contains(&own) {
            SNAT_PORTS.contains(&self.source.port())
        } else {
            self.source.port() == own
        };
        if right {
            Ok(())
        } else {
            Err(format!("port {own} became {}", self.source.port()))
        }
    }

    fn forwarded(&self, rig: &Rig, packet: &Packet, verdict: Verdict) -> Outcome {
        let at = rig.entry(self.origin, packet.destination.ip());
        let must = self.masqueraded || self.origin == Origin::Host;
        let sent = if must || rig.direct() {
            sent(rig, at, self.target.ip(), must)
        } else {
            UNSENT
        };
        outcome(packet, self.source, self.target, &sent, verdict)
    }

    /// A translated packet is left alone by the program of the device that it leaves by.
    fn leaves(&self, rig: &mut Rig, packet: &Packet) -> Result<(), String> {
        let at = match (rig.way(self.target.ip()), self.origin) {
            (Way::Node, _) => return Ok(()),
            (Way::Pod, _) => At::ToPod,
            (Way::Net, Origin::Host) => At::OutOfNode,
            (Way::Net, _) => At::ToNet,
        };
        rig.passes(at, &packet.between(self.source, self.target), &PASSED)
    }

    /// Another packet of the flow.
    pub(crate) fn forward(&self, rig: &mut Rig, packet: &Packet) -> Result<(), String> {
        let at = rig.entry(self.origin, packet.destination.ip());
        let got = rig.run(at, &packet.encode());
        same(&self.forwarded(rig, packet, Verdict::Forward), &got)
    }

    /// Both entries of the flow: the client's, the backend's.
    pub(crate) fn entries(&self, rig: &mut Rig) -> Result<[Remembered; 2], String> {
        let number = self.first.protocol();
        let forward = rig.flow(number, self.first.source, self.first.destination);
        let reply = rig.flow(number, self.target, self.source);
        Ok([forward.ok_or("no forward entry")?, reply.ok_or("no reply entry")?])
    }

    /// The same packet again; for TCP, the acknowledgement that follows it too.
    pub(crate) fn again(&self, rig: &mut Rig) -> Result<(), String> {
        self.forward(rig, &self.first)
            .map_err(|error| format!("repeated: {error}"))?;
        if let Body::Tcp { flags, .. } = self.first.body
            && flags & SYN != 0
        {
            let (from, to) = (self.first.source, self.first.destination);
            let next = Packet::tcp(from, to, ACK, b"a question");
            self.forward(rig, &next).map_err(|error| format!("next: {error}"))?;
        }
        Ok(())
    }

    /// The backend's answer, from the hook where it arrives to the one where it leaves.
    pub(crate) fn answered(&self, rig: &mut Rig) -> Result<(), String> {
        let answer = self.first.between(self.source, self.target).reply();
        self.answered_with(rig, &answer)
    }

    /// Where packets of the backend arrive.
    pub(crate) fn arrival(&self, rig: &Rig) -> At {
        match rig.way(self.target.ip()) {
            // Not masqueraded because the API says that the backend is here, whatever its address.
            _ if self.origin == Origin::Outside && !self.masqueraded => At::FromPod,
            Way::Pod => At::FromPod,
            Way::Net => At::FromNet,
            Way::Node => At::Loopback,
        }
    }

    /// Where packets to the client leave, unless it is the node.
    pub(crate) fn departure(&self) -> Option<At> {
        match self.origin {
            Origin::Pod => Some(At::ToPod),
            Origin::Outside => Some(At::ToNet),
            Origin::Host => None,
        }
    }

    /// Whether the backend's packets are translated where they arrive.
    pub(crate) fn translated_on_arrival(&self, rig: &Rig) -> bool {
        self.masqueraded || self.origin == Origin::Host || rig.direct()
    }

    /// What a packet to the client is sent like, if it is translated where it arrives.
    fn sent_back(&self, rig: &Rig) -> Sent {
        let at = self.arrival(rig);
        if at == At::Loopback {
            UNSENT
        } else if self.origin == Origin::Host && !self.masqueraded {
            // Whatever the frontend's address: `lo` takes it.
            Sent {
                action: REDIRECT,
                hops: 0,
                to_self: true,
            }
        } else {
            // The stack would not take what comes from the node's own address.
            sent(rig, at, self.first.source.ip(), self.masqueraded || self.to_node)
        }
    }

    /// As [`Trip::answered`], with this packet of the backend.
    pub(crate) fn answered_with(&self, rig: &mut Rig, answer: &Packet) -> Result<(), String> {
        let (from, to) = (self.first.destination, self.first.source);
        let arrival = self.arrival(rig);
        let mut leaving = answer.clone();
        if self.translated_on_arrival(rig) {
            let got = rig.run(arrival, &answer.encode());
            let want = outcome(answer, from, to, &self.sent_back(rig), Verdict::Reply);
            same(&want, &got).map_err(|error| format!("answer at {arrival:?}: {error}"))?;
            leaving = answer.between(from, to);
        } else {
            rig.passes(arrival, answer, &PASSED)?;
        }
        let Some(departure) = self.departure() else {
            return Ok(());
        };
        if self.translated_on_arrival(rig) {
            return rig.passes(departure, &leaving, &PASSED);
        }
        let got = rig.run(departure, &answer.encode());
        let want = outcome(answer, from, to, &UNSENT, Verdict::Reply);
        same(&want, &got).map_err(|error| format!("answer at {departure:?}: {error}"))
    }

    /// An ICMP error about a packet that the backend (or `router`, on the way to it) got from us.
    pub(crate) fn error_about_request(
        &self,
        rig: &mut Rig,
        about: &Packet,
        router: Option<IpAddr>,
        what: IcmpError,
    ) -> Result<(), String> {
        let seen = about.between(self.source, self.target);
        let sender = router.unwrap_or(self.target.ip());
        let error = what.about(sender, &seen);
        let mut want = what.about(router.unwrap_or(about.destination.ip()), about);
        want.destination = SocketAddr::new(about.source.ip(), 0);
        let quote = requote(&what.quote(&seen), about.source, about.destination);
        let want = want.quoting(quote);
        let arrival = self.arrival(rig);
        if self.translated_on_arrival(rig) {
            let sent = Sent {
                hops: 0,
                ..self.sent_back(rig)
            };
            let got = rig.run(arrival, &error.encode());
            return same(&outcome_of(&want, &sent), &got).map_err(|error| format!("error at {arrival:?}: {error}"));
        }
        rig.passes(arrival, &error, &[Verdict::NotService])?;
        let Some(departure) = self.departure() else {
            return Ok(());
        };
        let got = rig.run(departure, &error.encode());
        same(&outcome_of(&want, &UNSENT), &got).map_err(|error| format!("error at {departure:?}: {error}"))
    }

    /// An ICMP error about a packet that the client (or `router`, on the way to it) got from us.
    pub(crate) fn error_about_answer(
        &self,
        rig: &mut Rig,
        router: Option<IpAddr>,
        what: IcmpError,
    ) -> Result<(), String> {
        let sent_by_backend = self.first.between(self.source, self.target).reply();
        let seen = sent_by_backend.between(self.first.destination, self.first.source);
        let error = what.about(router.unwrap_or(self.first.source.ip()), &seen);
        let mut want = what.about(router.unwrap_or(self.source.ip()), &sent_by_backend);
        want.destination = SocketAddr::new(self.target.ip(), 0);
        let quote = requote(&what.quote(&seen), self.target, self.source);
        let want = want.quoting(quote);
        let at = rig.entry(self.origin, self.first.destination.ip());
        let must = self.masqueraded || self.origin == Origin::Host;
        let sent = if must || rig.direct() {
            sent(rig, at, self.target.ip(), must)
        } else {
            UNSENT
        };
        let got = rig.run(at, &error.encode());
        same(&outcome_of(&want, &Sent { hops: 0, ..sent }), &got).map_err(|error| format!("error at {at:?}: {error}"))
    }
}

/// An ICMP error as such.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IcmpError {
    /// Type and code.
    pub(crate) kind: [u8; 2],
    /// Second word: zero, or an MTU.
    pub(crate) rest: [u8; 4],
    /// Most bytes of the packet that it quotes.
    pub(crate) quotes: usize,
}

impl IcmpError {
    fn quote(&self, packet: &Packet) -> Vec<u8> {
        let mut quote = packet.ip();
        quote.truncate(self.quotes);
        quote
    }

    /// The error that `sender` sends about `packet`, to whom that came from.
    fn about(&self, sender: IpAddr, packet: &Packet) -> Packet {
        Packet::error(sender, packet.source.ip(), self.kind, self.rest, &self.quote(packet))
    }
}

/// What must become of an error that looks like `packet` afterwards.
fn outcome_of(packet: &Packet, sent: &Sent) -> Outcome {
    outcome(packet, packet.source, packet.destination, sent, Verdict::IcmpRelated)
}
