"""Avro messages in the Confluent wire format to columns, as a list of `kernels.flat_json.Field` says.

A message is a zero byte, the writer's schema id as four bytes (the first is the highest), and the record in Avro's binary form.
"""
