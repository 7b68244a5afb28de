# Completion of brokerctl, as the installed one has it.
eval "$(brokerctl completions bash)"
