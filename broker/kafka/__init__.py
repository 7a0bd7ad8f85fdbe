"""The distributed log on Apache Kafka, and a broker of one's own to try it with."""
