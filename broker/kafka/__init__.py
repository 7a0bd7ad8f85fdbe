"""The distributed log on Apache Kafka, and a local broker for trying it out."""
