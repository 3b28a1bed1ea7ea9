"""Words for the passages; a list is one string with "|" between its entries, and "/" inside an entry parts what belongs together."""

from __future__ import annotations

PLACES = (
    "Ashford Vale|Bellmoor|Carrick Bay|Dunwater|Eastholm|Fairlow|Greyhaven|Hollin|Inverlea|Kestrel Bridge|Larchwood|Millbrook|"
    "Norwick|Oakenshaw|Pendleford|Quarry Hill|Redmarsh|Silverton|Thornbeck|Upper Wynd|Westmere|Yarrow|Brindle Heath|Coldspring|"
    "Dovercliff|Elmstead|Foxcombe|Gullsport|Harrowgate Green|Kingsford|Lowmoor|Marlbeck|Otterburn|Port Sable|Ravensby|Stonehythe|"
    "Tidewell|Wexcombe"
)
SURNAMES = (
    "Abbot|Archer|Barlow|Bexley|Bramley|Calloway|Carver|Chandler|Clements|Crane|Dalby|Darrow|Draper|Ellery|Fairburn|Farrow|Fenn|"
    "Garland|Gentry|Graves|Hale|Harker|Hollis|Ingram|Jessop|Kemble|Lacey|Langley|Lovell|Mallory|Marsh|Merrick|Norcott|Oakley|"
    "Orchard|Paget|Penrose|Quill|Radley|Rook|Sadler|Selwyn|Sterling|Tanner|Thorne|Upton|Vance|Wainwright|Weaver|Winslow|"
    "Ashcroft|Birchall|Cobden|Dunmore|Eastman|Fielding|Goddard|Hartwell|Ivory|Kirkby|Loxley|Mortimer|Nightingale|Ormond|Pickering|"
    "Ridley|Shaw|Trellis|Underhill|Wyatt"
)
PEOPLE = {
    "names": (
        "Ada/f|Albert/m|Beatrice/f|Bernard/m|Clara/f|Conrad/m|Dorothy/f|Edmund/m|Edith/f|Felix/m|Florence/f|George/m|Grace/f|"
        "Harold/m|Helena/f|Hugo/m|Ida/f|Isaac/m|Josephine/f|Julian/m|Lydia/f|Leopold/m|Mabel/f|Martin/m|Nora/f|Oscar/m|Olive/f|"
        "Philip/m|Rosa/f|Robert/m|Sylvia/f|Simon/m|Theresa/f|Thomas/m|Vera/f|Victor/m|Amelia/f|Arthur/m|Cecilia/f|Daniel/m|"
        "Eleanor/f|Frederick/m|Harriet/f|Jonas/m|Matilda/f|Nathan/m|Ruth/f|Walter/m|Winifred/f|Zachary/m"
    ),
    "jobs": (
        "clockmaker/a clock that ran for a year without winding/the Golden Pendulum|"
        "botanist/a blue rose that survives the frost/the medal of the Garden Society|"
        "painter/a series of storms at sea/the Lantern Prize|"
        "bridge builder/a wooden bridge without a single nail/the key of the city|"
        "composer/an opera about a lost lighthouse/the Silver Violin|"
        "baker/a bread that stays fresh for a month/the order of the Wheat Sheaf|"
        "astronomer/the discovery of a comet with two tails/the Star of Science|"
        "map maker/the first accurate map of the northern islands/the Compass Medal|"
        "photographer/pictures of fishermen at dawn/the Clear Eye award|"
        "gardener/a maze of yew hedges/a diploma from the queen|"
        "writer/a novel told by a stray dog/the Green Feather|"
        "doctor/a cure for a fever that struck miners/the Healing Hand|"
        "teacher/a school on a river boat/an honorary degree|"
        "glass blower/a window in forty shades of red/the Crystal Cup|"
        "puppet maker/a theatre that fitted into a suitcase/the Little Crown|"
        "engineer/a pump that needed neither fuel nor wind/the Iron Wheel|"
        "beekeeper/a hive with walls of glass/the Honey Spoon|"
        "mountaineer/the first winter climb of Mount Corvan/the Ice Axe of Honour"
    ),
    "hobbies": (
        "growing giant pumpkins|playing the accordion|rowing on the lake|collecting old keys|baking plum cakes|long walks at night|"
        "chess by letter|carving wooden ducks|fishing for trout|writing short poems|repairing radios|keeping a weather diary|"
        "singing in a choir|flying kites|learning dead languages|knitting striped scarves"
    ),
    "pets": (
        "a one-eyed cat|a grey parrot|an old donkey|a pair of hounds|a tame crow|a blind pony|a very lazy goose|a white rabbit|"
        "a talking starling|a tortoise|a shaggy sheepdog|a goat"
    ),
    "parents": (
        "a sailor and a nurse|two schoolteachers|poor farmers|a judge|travelling actors|a miller|a lighthouse keeper|market traders|"
        "a railway guard|a widowed tailor"
    ),
}
TOWNS = {
    "names": (
        "Aldermoor|Barrowfield|Castle Finn|Dorrington|Ebbstone|Farnley Cross|Gatesby|Hawksmoor|Islington Mere|Jasper Bay|Kelderton|"
        "Lindenau|Maplethorpe|Nettlecombe|Overby|Pinewell|Queensmere|Rushford|Saltcote|Tillingham|Umberley|Vinebridge|Wickstead|"
        "Yewdale|Amberwick|Brackley Sands|Crowhurst|Dapplemere|Elderfield|Fishergate|Goosewell|Heronsbrook|Ivybridge Park|Juniper Hill|"
        "Kittering|Lambourne|Mosswater|Nightford|Orchard Bay|Pebblecombe|Rainham Court|Sparrowdale|Tansy Green|Vale Royal|Whistlewood|"
        "Zennor Point|Hopefield|Larkstoke"
    ),
    "rivers": "Arrow|Brede|Calder|Dunn|Elver|Foss|Glimmer|Hartle|Lune|Medlar|Nidd|Ouzel|Rill|Severell|Teal|Wend",
    "industries": (
        "glass making|the leather trade|sheep farming|fishing|paper making|the growing of hops|tourism|salt mining|boat building|"
        "the wine trade|furniture making|the making of cheese|printing|beekeeping|the clothing industry"
    ),
    "landmarks": (
        "the crooked tower|a fountain with seven dolphins|the floating market|a church without a roof|the hanging gardens|"
        "a library in an old barn|the stone elephant|a row of painted houses|the underground theatre|a clock that runs backwards|"
        "the narrowest street in the country|a castle on a rock|the museum of buttons|an oak that is a thousand years old"
    ),
    "founders": (
        "monks|two brothers|a duke in exile|shipwrecked sailors|a rich widow|wool merchants|a group of miners|fishermen from the north|"
        "a retired general|weavers who had fled from war|a bishop|salt traders"
    ),
    "disasters": (
        "a great fire|a flood|an earthquake|a landslide|a violent storm|an explosion at the mill|a swarm of locusts|an avalanche"
    ),
    "days": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
}
ANIMALS = {
    "names": (
        "Bruno|Pepper|Duchess|Captain|Willow|Biscuit|Rusty|Olga|Marble|Tango|Nutmeg|Goliath|Snowball|Pickles|Shadow|Juno|Caspar|Daisy|"
        "Waldo|Ginger|Moses|Clementine|Bandit|Treacle|Humphrey|Bella|Ziggy|Rufus|Mango|Petunia|Tinker|Maestro|Freckles|Cosmo|Buttons|"
        "Sultan|Poppy|Otto|Pearl|Jasper|Muffin|Barnaby|Saffron|Leo|Thimble|Gulliver|Nimbus|Truffle"
    ),
    # kind/lightest/heaviest in kilograms
    "kinds": (
        "brown bear/140/320|grey seal/90/260|giant tortoise/80/230|mountain goat/35/90|llama/110/190|penguin/11/32|wild boar/60/170|"
        "lynx/14/29|camel/350/640|donkey/120/260|beaver/13/29|zebra/220/370|wolf/30/58|reindeer/80/170|badger/11/16|roe deer/16/34|"
        "bison/380/870|sea lion/90/280"
    ),
    "foods": (
        "fresh herring|carrots|boiled potatoes|clover|apples|minced meat|oats|melon|dry bread|cabbage leaves|honey cake|walnuts|"
        "dandelions|grapes|cooked rice|turnips|dates|barley"
    ),
    "tricks": (
        "ring a bell|open the gate|balance a ball|paint with a brush|wave at visitors|count to four|carry a basket|sit on a chair|"
        "bow before meals|play a drum|fetch the newspaper|walk backwards|turn off a tap|blow a whistle"
    ),
    "fears": (
        "thunder|umbrellas|the lawn mower|balloons|men with beards|bicycles|its own reflection|loud music|brass bands|snow|"
        "the feeding bucket|yellow raincoats|small dogs|fireworks"
    ),
    "friends": (
        "an old sheepdog|a young goat|a rubber boot|a lame duck|a grey goose|a blind pony|a kitten|a stuffed toy lion|a ginger cat|"
        "a piglet called Bean|two hens|a straw doll"
    ),
    "places": (
        "in the Harrow Park sanctuary|at the Blue Bay sea centre|on a farm near the coast|in the Hillside zoo|at the Mossy Gate shelter|"
        "in the royal deer park|at a home for lost animals|in the garden of a school|on the island reserve|at the Pinetop wildlife centre"
    ),
    "finders": (
        "a lorry driver|two hikers|a group of schoolchildren|a fisherman|the village priest|a postwoman|forest workers|a farmer's wife|"
        "a police patrol|a boy on a bicycle|railway workers|a lost tourist"
    ),
}
MACHINES = {
    "names": (
        "Corvane|Titan|Bluestar|Mammoth|Swiftline|Hercules|Dragonfly|Orbit|Beaver|Thunderer|Lumina|Pathfinder|Grasshopper|Atlas|"
        "Millwright|Northwind|Comet|Ironside|Whale|Falcon|Harvester|Sentinel|Magpie|Cyclone|Badger|Trident|Vulcan|Pelican|Rambler|"
        "Goldfinch|Colossus|Ferret|Meteor|Silverback|Anvil|Kingfisher"
    ),
    "kinds": (
        "harvester/cutting tall grass|steam crane/loading ships|printing press/making newspapers|drill/digging tunnels|"
        "snow plough/clearing mountain roads|loom/weaving carpets|tractor/work on steep fields|submarine/exploring deep lakes|"
        "pump/draining flooded mines|saw/cutting oak trunks|road roller/flattening gravel|dredger/cleaning canals|"
        "sorting machine/separating stamps|telescope/watching the sun|oven/baking bricks|fire engine/use in narrow streets|"
        "cable car/carrying hay|bottling machine/filling milk bottles"
    ),
    "companies": "and Sons|Works|Brothers|Engineering|and Company|Motors|Machines",
    "powers": (
        "steam|electric motors|diesel oil|compressed air|a water wheel|wood gas|batteries|two petrol engines|sunlight|pedals|"
        "burning straw|natural gas"
    ),
    "materials": "oak|steel|cast iron|aluminium|bronze|ash wood|riveted plates|carbon fibre|brass|bamboo",
    "faults": (
        "leaking valves|broken chains|brakes that failed|overheating|worn belts|a cracked axle|weak springs|rust|loose bolts|"
        "noise that could be heard for miles|a slow start in cold weather|blocked filters"
    ),
    "colours": "red|dark green|yellow|sky blue|black|orange|white|silver|purple|cream",
}
BUILDINGS = {
    "names": (
        "Saint Agnes|Fairweather|Old Harbour|Kingsgate|Rosewood|Whitecliff|Marchmont|Bellamy|Seven Winds|Oldcastle|Thistle|Clearwater|"
        "Highfield|Ravensworth|Summerhill|Blackfriars|Larkspur|Northgate|Copper Roof|Foxglove|Ludgrove|Star|Merchant|Queen Maud|"
        "Wintergreen|Pilgrim|Falconer|Gooseberry|Sailor|Arden|Birdcage|Hazelmere|Crescent|Swan|Trinity|Moonraker"
    ),
    "kinds": "Tower|Hall|Lighthouse|Windmill|House|Chapel|Mill|Abbey|Palace",
    "stones": (
        "yellow sandstone|red brick|grey granite|white marble|black slate|rough limestone|oak beams and clay|glazed tiles|flint|"
        "blocks of lava"
    ),
    "uses": (
        "a prison|a grain store|a hospital|a school for pilots|a customs house|a silk factory|a barracks|a post office|a brewery|"
        "a wool market|an inn|a dance hall"
    ),
    "present": (
        "a museum|a hotel|an art school|a concert hall|a youth hostel|a public library|a restaurant|a centre for the deaf|"
        "an observatory|a theatre|a swimming pool|a radio station"
    ),
    "payers": (
        "a tax on salt|a lottery|the guild of bakers|an anonymous sailor|a rich tea merchant|the widow of a banker|"
        "the sale of a diamond|a tax on windows|the local fishermen|a circus owner|the king himself|a collection in the streets"
    ),
    "oddities": (
        "a grey lady walks on the stairs|treasure lies under the floor|the bell rings by itself at midnight|nobody can count its windows|"
        "a secret tunnel leads to the river|no bird ever lands on the roof|its builder is buried in the wall|"
        "candles never go out inside|a wish made on the last step comes true|the cellar once held a dragon"
    ),
}
FESTIVALS = {
    "names": (
        "Lantern|Herring|Apple|Candle|Kite|Barrel|Snowdrop|Onion|River|Shepherd|Chimney|Rain|Honey|Wool|Broomstick|Clock|Mushroom|"
        "Feather|Raft|Scarecrow|Whistle|Pudding|Bonfire|Sandcastle|Umbrella|Goose|Button|Cherry|Hay|Moonlight|Pumpkin|Ferry|Drum|"
        "Rosehip|Window|Ladder"
    ),
    "kinds": "Festival|Fair|Parade|Games|Days|Feast",
    "months": "January|February|March|April|May|June|July|August|September|October|November|December",
    "reasons": (
        "the end of a long war|a rich harvest|the return of the fishing fleet|the first train|the birth of a prince|"
        "the rescue of a lost child|the victory over a flood|a royal wedding|the opening of the canal|the end of a strike|"
        "the longest day of the year|the discovery of a spring"
    ),
    "dishes": (
        "smoked eel on rye bread|pancakes with cherries|bean soup|fried dumplings|roast chestnuts|plum tarts|grilled sardines|"
        "potato waffles|ginger biscuits|pea stew with mint|cheese pies|candied almonds"
    ),
    "contests": (
        "the race in wooden tubs|the tug of war|the egg throwing|the whistling contest|the dance on stilts|the race of the snails|"
        "the climbing of the greasy pole|the parade of the hats|the blind tasting|the battle of the brass bands|the cheese rolling|"
        "the midnight swim"
    ),
    "prizes": (
        "a live goose|a silver spoon|a barrel of cider|a crown of straw|a ham|a pair of boots|a year of free bread|a golden ladle|"
        "a bag of salt|a hand-made kite|a new bicycle|a kiss from the mayor"
    ),
    "guests": (
        "retired sailors|newly married couples|the oldest inhabitants|twins|the firefighters|visitors from abroad|the youngest pupils|"
        "the street sweepers|nurses"
    ),
    "sounds": (
        "a cannon shot|a trumpet on the tower|church bells|a choir of children|a hundred drums|the horn of the ferry|fireworks|"
        "a long silence|the crack of whips|a speech in rhyme"
    ),
}
