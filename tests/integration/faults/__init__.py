"""What fails around a store: the network, the service, credentials, disks."""
