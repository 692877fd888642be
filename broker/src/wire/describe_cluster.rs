//! DescribeCluster (key 60): who is there.

use std::borrow::Cow;

use super::ErrorCode;
use super::table::messages;

messages! {
    /// What is to be told.
    pub struct DescribeClusterRequest of DescribeCluster {
        include_cluster_authorized_operations: bool = 0..;
        /// 1 for brokers, 2 for controllers.
        endpoint_type: i8 = 1.., default 1;
        include_fenced_brokers: bool = 2..;
    }

    /// The cluster and its brokers.
    pub struct DescribeClusterResponse<'a> of DescribeCluster {
        throttle_time_ms: i32 = 0..;
        error_code: ErrorCode = 0..;
        error_message: Option<Cow<'a, str>> = 0..;
        endpoint_type: i8 = 1.., default 1;
        cluster_id: &'a str = 0..;
        controller_id: i32 = 0.., default -1;
        brokers: Vec<DescribeClusterBroker<'a>> = 0..;
        cluster_authorized_operations: i32 = 0.., default i32::MIN;
    }

    /// A broker's address.
    pub struct DescribeClusterBroker<'a> {
        broker_id: i32 = 0..;
        host: &'a str = 0..;
        port: i32 = 0..;
        rack: Option<&'a str> = 0..;
        is_fenced: bool = 2..;
    }
}
