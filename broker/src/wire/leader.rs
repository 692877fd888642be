//! Where the leader is now: what Produce and Fetch say beside NOT_LEADER_OR_FOLLOWER, so that a client need not ask
//! for metadata (KIP-951).

use super::table::messages;

messages! {
    /// The leader of a partition, both -1 when nothing is said.
    #[derive(Copy)]
    pub struct LeaderIdAndEpoch {
        leader_id: i32 = 0.., default -1;
        leader_epoch: i32 = 0.., default -1;
    }

    /// The address of a leader named in the response.
    pub struct NodeEndpoint<'a> {
        node_id: i32 = 0..;
        host: &'a str = 0..;
        port: i32 = 0..;
        rack: Option<&'a str> = 0..;
    }
}
