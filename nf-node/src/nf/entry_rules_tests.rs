//! What ends with an entry, and what holds a port.

use super::*;
use crate::nf::mapping_life::Life;
use crate::nf::nat44::Remote;
use nearstate_store::{PoolId, SlotId, TenantId, Version};

const TENANT: TenantId = TenantId(3);
const A: Endpoint = Endpoint::v4([10, 0, 0, 7], 4000);
const B: Endpoint = Endpoint::v4([198, 19, 0, 9], 1234);
const C: Endpoint = Endpoint::v4([203, 0, 113, 80], 443);

fn ending(key: Key, value: nearstate_store::Value) -> (Ending, Option<PoolPort>) {
    let entry = Entry { value, version: Version(1), slot: SlotId(0) };
    let mut ending = Ending::default();
    FunctionRules.end(&key, &entry, &mut ending);
    (ending, FunctionRules.port(&key, &entry))
}

#[test]
fn a_mapping_ends_with_both_entries_and_its_port_comes_back() {
    let mapping = |to| {
        Mapping { to, pool: PoolId(2), life: Life::Established, remote: Remote::of(&C) }.encode()
    };
    let (out, back) = (state_key::nat_out(TENANT, 6, A), state_key::nat_in(TENANT, 6, B));
    let endpoint = [198, 19, 0, 9, 4, 210];
    let (ends, port) = ending(out, mapping(B));
    let returned = Write::Return { pool: PoolId(2), protocol: 6, endpoint };
    assert_eq!(ends.writes[..], [Write::Delete(out), Write::Delete(back), returned]);
    assert_eq!((ends.partners.len(), port), (0, None));
    let (ends, port) = ending(back, mapping(A));
    assert_eq!(ends, Ending::default(), "it ends with the other");
    assert_eq!(port, Some(PoolPort { pool: PoolId(2), protocol: 6, endpoint }));
}

#[test]
fn a_balanced_flow_ends_when_neither_direction_is_seen_and_a_flow_of_the_firewall_alone() {
    let choice = |to| Choice { to, epoch: 1 }.encode();
    let there = state_key::balance(TENANT, 17, B, C);
    let back = state_key::balance_reply(TENANT, 17, B, A);
    for (key, to, partner) in [(there, A, back), (back, C, there)] {
        let (ends, port) = ending(key, choice(to));
        assert_eq!(ends.partners[..], [partner]);
        assert_eq!(ends.writes[..], [Write::Delete(key), Write::Delete(partner)]);
        assert_eq!(port, None);
    }
    let tuple = nearstate_placement::FlowTuple { protocol: 17, source: A, destination: C };
    let flow = state_key::firewall(TENANT, &tuple);
    for alone in [flow, state_key::nat_filter(TENANT, 17, A, C)] {
        let (ends, _) = ending(alone, nearstate_store::Value::ZERO);
        assert_eq!(
            (ends.writes[..].to_vec(), ends.partners.len()),
            (vec![Write::Delete(alone)], 0)
        );
    }
}
