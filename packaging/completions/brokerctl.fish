# Completion of brokerctl, as the installed one has it.
brokerctl completions fish | source
