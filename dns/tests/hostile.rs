//! Whatever comes by wire: no panic, nothing beyond limits, and every answer is one that others can read.

mod support;

use fairlead_dns::{message::Answer, wire};
use hickory_proto::{
    op::{Message, MessageType},
    rr::RecordType,
};
use proptest::prelude::*;
use serde_json::json;
use std::sync::LazyLock;
use support::World;

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let corefile = ". {\n any\n loadbalance\n hosts /nonexistent {\n 192.0.2.7 seven.example\n fallthrough\n }\n \
                    rewrite name suffix old.local cluster.local\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n pods insecure\n }\n}";
    let mut world = World::new(corefile);
    world.namespace("default");
    world.service(
        "default/web",
        json!({"clusterIPs": ["10.96.0.20", "fd00::20"], "ports": [{"name": "http", "port": 80}]}),
    );
    world.service("default/big", json!({"clusterIP": "None"}));
    let endpoints: Vec<_> = (0..200)
        .map(|it| json!({"addresses": [format!("10.1.0.{it}")]}))
        .collect();
    world.slice(
        "default/big-1",
        "big",
        "IPv4",
        json!([{"name": "p", "port": 1}]),
        json!(endpoints),
    );
    world
});

fn name() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "web.default.svc.cluster.local",
        "big.default.svc.cluster.local",
        "_p._tcp.big.default.svc.cluster.local",
        "web.default.svc.old.local",
        "seven.example",
        "cluster.local",
        "1.0.1.10.in-addr.arpa",
        ".",
    ]);
    let label = proptest::collection::vec(any::<u8>(), 1..64);
    let random = proptest::collection::vec(label, 0..4).prop_map(|labels| {
        let mut wire = Vec::new();
        labels
            .iter()
            .filter(|label| label.len() < 60)
            .for_each(|label| fairlead_dns::name::push_label(&mut wire, label));
        wire.push(0);
        wire
    });
    prop_oneof![known.prop_map(|it| fairlead_dns::name::wire_of(it).unwrap()), random]
}

fn question() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec![1_u16, 28, 33, 12, 6, 2, 5, 16, 255, 252, 13, 65]);
    let edns = proptest::option::of((any::<u16>(), any::<bool>()));
    (any::<u16>(), name(), kind, edns).prop_map(|(id, name, kind, edns)| {
        let edns = edns.map(|(size, dnssec_ok)| wire::Edns {
            size,
            version: 0,
            dnssec_ok,
        });
        wire::question(id, wire::flag::RD, &name, kind, edns)
    })
}

/// Bytes changed, put in and taken out.
fn damaged(packet: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damage = (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
    (packet, proptest::collection::vec(damage, 0..6)).prop_map(|(mut packet, damages)| {
        for (index, byte, kind) in damages {
            if packet.is_empty() {
                break;
            }
            let at = index.index(packet.len());
            match kind {
                0 => packet[at] = byte,
                1 => packet.insert(at, byte),
                _ => packet.truncate(at),
            }
        }
        packet
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn questions_get_answers_that_can_be_read(packet in question(), tcp in any::<bool>()) {
        let answer = WORLD.by(&packet, tcp).unwrap();
        let query = wire::Query::parse(&packet).unwrap();
        let limit = if tcp { 65535 } else { query.udp_limit(1232) };
        prop_assert!(answer.len() <= limit);
        let message = Message::from_vec(&answer);
        prop_assert!(message.is_ok(), "{:?}: {:?}", message, answer);
        let message = message.unwrap();
        prop_assert_eq!(message.metadata.id, query.id());
        prop_assert_eq!(message.metadata.message_type, MessageType::Response);
        prop_assert_eq!(&answer[12..12 + query.question().len()], query.question());
        prop_assert!(!(tcp && message.metadata.truncation));
        prop_assert_eq!(message.edns.is_some(), query.edns.is_some());
        if !message.metadata.truncation && query.name.to_string() == "big.default.svc.cluster.local." && query.qtype == 1 {
            prop_assert_eq!(message.answers.len(), 200);
        }
    }

    #[test]
    fn damaged_questions_hurt_nobody(packet in damaged(question()), tcp in any::<bool>()) {
        if let Some(answer) = WORLD.by(&packet, tcp) {
            prop_assert!(answer.len() >= 12 && answer[2] & 0x80 != 0);
            prop_assert_eq!(&answer[..2], &packet[..2]);
            prop_assert!(packet[2] & 0x80 == 0, "an answer to an answer makes a loop");
        }
    }

    #[test]
    fn noise_hurts_nobody(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
        WORLD.by(&packet, false);
        Answer::read(&packet);
    }

    #[test]
    fn damaged_answers_hurt_nobody(packet in damaged(question().prop_map(|packet| WORLD.by(&packet, true).unwrap())), limit in 512..2000_usize) {
        let Some(answer) = Answer::read(&packet) else { return Ok(()) };
        let question = [&[0; 12][..], answer.question()].concat();
        let mut question = question;
        question[5] = 1;
        let query = wire::Query::parse(&question).unwrap();
        let form = fairlead_dns::message::Form {
            limit, flags: wire::flag::RA, size: 1232, ttl: Some(7), minimal: false, authoritative: true,
        };
        let mut out = Vec::new();
        answer.write(&mut out, &query, &form);
        prop_assert!(out.len() <= limit.max(question.len()));
        // What was written can be read again, and keeps its TTL.
        let again = Answer::read(&out);
        prop_assert!(again.is_some(), "{:?}", out);
        answer.clone().shuffled();
        answer.renamed(&packet[12..12 + answer.question().len()]);
    }
}

#[test]
fn answers_of_others_are_kept_as_they_came() {
    let packet = support::packet("_p._tcp.big.default.svc.cluster.local", RecordType::SRV);
    let bytes = WORLD.by(&packet, true).unwrap();
    let answer = Answer::read(&bytes).unwrap();
    let query = wire::Query::parse(&packet).unwrap();
    let form = fairlead_dns::message::Form {
        limit: 65535,
        flags: wire::flag::AA,
        size: 1232,
        ttl: Some(9),
        minimal: false,
        authoritative: true,
    };
    let mut out = Vec::new();
    answer.write(&mut out, &query, &form);
    let (before, after) = (Message::from_vec(&bytes).unwrap(), Message::from_vec(&out).unwrap());
    assert_eq!(before.answers.len(), 200);
    assert!(after.answers.iter().chain(&after.additionals).all(|it| it.ttl == 9));
    let data = |message: &Message| message.answers.iter().map(|it| it.data.to_string()).collect::<Vec<_>>();
    assert_eq!(data(&before), data(&after));
    // Cut where it is full: whole records, a mark, nothing after the first that does not fit.
    answer.write(&mut out, &query, &fairlead_dns::message::Form { limit: 512, ..form });
    let cut = Message::from_vec(&out).unwrap();
    assert!(cut.metadata.truncation && !cut.answers.is_empty() && cut.additionals.is_empty() && out.len() <= 512);
}
