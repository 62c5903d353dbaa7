// Reactions to begin with: well known, and of different kinds.

const NAD = "NC(=O)c1ccc[n+]([C@@H]2O[C@H](COP(=O)(O)OP(=O)(O)OC[C@H]3O[C@@H](n4cnc5c(N)ncnc54)[C@H](O)[C@@H]3O)[C@@H](O)[C@H]2O)c1";
const NADH =
  "NC(=O)C1=CN([C@@H]2O[C@H](COP(=O)(O)OP(=O)(O)OC[C@H]3O[C@@H](n4cnc5c(N)ncnc54)[C@H](O)[C@@H]3O)[C@@H](O)[C@H]2O)C=CC1.[H+]";

export const EXAMPLES = [
  { name: "Acetylcholinesterase", reactions: ["CC(=O)OCC[N+](C)(C)C.O>>C[N+](C)(C)CCO.CC(=O)O"] },
  { name: "Fumarase", reactions: ["OC(=O)/C=C/C(=O)O.O>>OC(=O)C[C@H](O)C(=O)O"] },
  { name: "Lactate dehydrogenase", reactions: [`C[C@H](O)C(=O)O.${NAD}>>CC(=O)C(=O)O.${NADH}`] },
  { name: "Catalase", reactions: ["OO.OO>>O=O.O.O"] },
  {
    name: "Three hydrolases",
    reactions: [
      "NC(N)=O.O>>N.N.O=C=O",
      "CC(=O)Oc1ccccc1C(=O)O.O>>OC(=O)c1ccccc1O.CC(=O)O",
      "OC[C@H]1O[C@@H](O[C@H]2[C@H](O)[C@@H](O)C(O)O[C@@H]2CO)[C@H](O)[C@@H](O)[C@H]1O.O>>OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@H]1O.OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O",
    ],
  },
];
