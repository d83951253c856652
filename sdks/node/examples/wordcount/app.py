"""Counts words; the nodes are JavaScript, in nodes.js.

npm install --no-save "$(npm pack --silent ../..)"
grape run app.py:topology --feed line=poem.txt --take total
"""

from grape import Topology

topology = Topology("wordcount_js")
topology.add_pool("js", runtime="node", entry="nodes.js")
topology.add_output("total")
