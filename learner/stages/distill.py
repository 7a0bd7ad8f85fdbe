"""``kind = "distill"``: supervised training of a student on what a teacher has said, an artefact of an earlier stage or a source of documents.

The published recipe (DeepSeek-R1, arXiv 2501.12948, section 2.4 and supplement B.4.3): a rate by the size of the student, falling to a tenth of it
along a cosine, and no warm-up to speak of.
"""
